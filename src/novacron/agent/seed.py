"""The NoCloud seed: a small ISO image from which cloud-init in the guest reads its documents."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pycdlib

from novacron.errors import InvalidInput
from novacron.model.machine import CloudInit

LABEL = "cidata"
MAX_DOCUMENT_BYTES = 64 * 1024


def documents(vm_id: str, cloud_init: CloudInit) -> dict[str, bytes]:
    """The seed's files by name. The user's text is passed through untouched.

    The instance id is the VM's id alone, so that a migration or restart does not look like a new machine to the guest.

    :raise InvalidInput: a document is over 64 KiB or not text.
    """
    texts = {
        "user-data": cloud_init.user_data or "#cloud-config\n",
        "meta-data": cloud_init.meta_data or f"instance-id: {vm_id}\n",
        "network-config": cloud_init.network_config,
    }
    return {name: _encoded(name, text) for name, text in texts.items() if text}


def _encoded(name: str, text: str) -> bytes:
    field = f"cloud_init.{name.replace('-', '_')}"
    try:
        content = text.encode()
    except UnicodeEncodeError as wrong:
        raise InvalidInput.field(field, "is not valid Unicode text", "give UTF-8 text") from wrong
    if len(content) > MAX_DOCUMENT_BYTES:
        raise InvalidInput.field(field, f"is {len(content)} bytes", f"give at most {MAX_DOCUMENT_BYTES} bytes")
    return content


def image(files: dict[str, bytes]) -> bytes:
    """An ISO 9660 image labelled `cidata` with Joliet and Rock Ridge names, as NoCloud wants it."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for number, (name, content) in enumerate(sorted(files.items())):
        iso.add_fp(io.BytesIO(content), len(content), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()


def write(path: Path, vm_id: str, cloud_init: CloudInit, uid: int | None) -> None:
    """Make the seed at `path`, readable by `uid` alone. Blocks: call it in a thread.

    The directory belongs to the machine's user, so the file is made anew without following what may lie there.
    """
    content = image(documents(vm_id, cloud_init))
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        if uid is not None:
            os.fchown(handle, uid, uid)
