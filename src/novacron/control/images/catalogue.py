"""What images allow, decided from their records: sealing, deleting, what uses a file, and where a tag goes."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

import msgspec

from novacron.control.store.base import Delete, Expect, Put
from novacron.control.store.kinds import IMAGES, VMS, VOLUMES
from novacron.control.store.records import Records, Write, update
from novacron.errors import Conflict, Reason, StateConflict
from novacron.model.image import (
    FilePhase,
    FileRole,
    FileTask,
    Image,
    ImageFile,
    ImageState,
    file_of,
    is_bootable,
)
from novacron.model.vm import Vm

MAX_NAMED = 10  # VMs named in a refusal


def sealed(image: Image, now: datetime.datetime) -> Image:
    """The image as ready. :raise Conflict: a machine could not start from it, with a reason for each lack."""
    if image.state is ImageState.READY:
        return image
    lacks = list(map(_awaited, image.tasks))
    if not is_bootable(image) and not image.tasks:
        lacks.append(Reason("image.not_bootable", "it has no disk, kernel or firmware file", remedy="PUT one first"))
    if file_of(image, FileRole.KERNEL) is None and not image.tasks:
        remedy = "PUT the kernel first"
        if file_of(image, FileRole.INITRD) is not None:
            lacks.append(Reason("image.initrd_alone", "it has an initrd file and no kernel", remedy=remedy))
        if image.cmdline:
            lacks.append(Reason("image.cmdline_alone", "it has a kernel command line and no kernel", remedy=remedy))
    if lacks:
        raise Conflict(f"cannot seal image {image.name}: {'; '.join(lack.message for lack in lacks)}", lacks)
    return msgspec.structs.replace(image, state=ImageState.READY, updated_at=now)


def _awaited(task: FileTask) -> Reason:
    role = task.role.value
    if task.phase is FilePhase.FAILED:
        why = task.problem.message if task.problem else "nobody knows why"
        return Reason(
            "image.file_failed", f"its {role} file failed: {why}", role, f"send it again, or DELETE files/{role}"
        )
    return Reason("image.file_awaited", f"its {role} file is {task.phase.value}", role, "wait until it is there")


def check_pending(image: Image, verb: str) -> None:
    """:raise StateConflict: the image is ready, and its files never change any more."""
    if image.state is not ImageState.PENDING:
        raise StateConflict.of(f"image {image.name}", image.state.value, (ImageState.PENDING.value,), verb)


def check_deletable(image: Image, vms: Iterable[Vm]) -> None:
    """:raise Conflict: it is protected, or VMs were made from it; a reason for each."""
    if image.protected:
        remedy = f"novacron image update {image.name} --unprotect"
        raise Conflict(
            f"image {image.name} is protected", [Reason("image.protected", "it is protected", image.name, remedy)]
        )
    users = [vm.name for vm in vms if vm.spec.image_id == image.id]
    if users:
        reasons = [
            Reason("image.in_use", "it was made from this image", subject=name, remedy="delete the VM first")
            for name in users[:MAX_NAMED]
        ]
        raise Conflict(f"cannot delete image {image.name}: {len(users)} VMs were made from it", reasons)


# -- files and the work on them --------------------------------------------------------------------------------------


def with_file(image: Image, file: ImageFile, now: datetime.datetime) -> Image:
    """The image with that file in place of an earlier one of its role, the work on it done."""
    files = tuple(one for one in image.files if one.role is not file.role)
    tasks = tuple(one for one in image.tasks if one.role is not file.role)
    if file in image.files and tasks == image.tasks:
        return image
    return msgspec.structs.replace(image, files=(*files, file), tasks=tasks, updated_at=now)


def with_task(image: Image, task: FileTask, now: datetime.datetime) -> Image:
    """The image with that work on the file of its role, in place of earlier work."""
    tasks = tuple(one for one in image.tasks if one.role is not task.role)
    return msgspec.structs.replace(image, tasks=(*tasks, task), updated_at=now)


def without(image: Image, role: FileRole, now: datetime.datetime) -> Image:
    """The image without a file of that role, and without work on it."""
    files = tuple(one for one in image.files if one.role is not role)
    tasks = tuple(one for one in image.tasks if one.role is not role)
    if (files, tasks) == (image.files, image.tasks):
        return image
    return msgspec.structs.replace(image, files=files, tasks=tasks, updated_at=now)


# -- who uses a file -------------------------------------------------------------------------------------------------


def is_an_images(records: Records, digest: str) -> bool:
    """Whether an image has a file with that digest."""
    return any(file.digest == digest for stored in records.all(IMAGES) for file in stored.record.files)


def is_a_volumes(records: Records, digest: str) -> bool:
    """Whether a volume stands on that digest, or a drive holds it."""
    if any(stored.record.backing_digest == digest for stored in records.all(VOLUMES)):
        return True
    specs = (spec for stored in records.all(VMS) for spec in (stored.record.spec, stored.record.booted) if spec)
    return any(
        digest in (*(disk.backing_digest for disk in spec.disks), *(media.digest for media in spec.media))
        for spec in specs
    )


# -- tags ------------------------------------------------------------------------------------------------------------


def tag_key(tag: str) -> str:
    """Where the store keeps whose a tag is; names have no colon, so they never meet."""
    return IMAGES.name_key(tag)


async def retag(records: Records, image_id: str, tags: Sequence[str]) -> Write:
    """What to write beside the image when it gets these tags: they are taken from the images that had them.

    A tag is on one image at a time, whoever asks at once: each is a key of its own, written by compare-and-swap.
    """
    mine = records.get(IMAGES, image_id)
    before = mine.record.tags if mine else ()
    ops: list[Put | Delete] = []
    expect: list[Expect] = []
    losers: dict[str, set[str]] = {}
    for tag in sorted({*tags, *before}):
        if tag in tags and tag in before:
            continue
        entry = await records.store.get(tag_key(tag))
        expect.append(Expect(tag_key(tag), entry.modified if entry else 0))
        ops.append(Put(tag_key(tag), image_id.encode()) if tag in tags else Delete(tag_key(tag)))
        if entry is not None and tag in tags:
            losers.setdefault(entry.value.decode(), set()).add(tag)
    for loser_id, lost in losers.items():
        stored = records.get(IMAGES, loser_id)
        if stored is None or loser_id == image_id:
            continue
        kept = tuple(tag for tag in stored.record.tags if tag not in lost)
        taken = update(IMAGES, stored, msgspec.structs.replace(stored.record, tags=kept))
        ops += taken.ops
        expect += taken.expect
    return Write(tuple(ops), tuple(expect))


def untag(image: Image) -> Write:
    """What to write beside the deletion of an image."""
    return Write(tuple(Delete(tag_key(tag)) for tag in image.tags), ())
