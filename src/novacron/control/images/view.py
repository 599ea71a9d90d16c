"""An image as the API shows it: the shape of wire.rest.images.Image."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.control.encoded import Encoded
from novacron.control.store.kinds import IMAGES
from novacron.control.store.records import Records
from novacron.model.image import FileTask, Image


class ImageView:
    """`data` builds the object, `encoded` its bytes, once for each revision."""

    def __init__(self, records: Records) -> None:
        self.encoded = Encoded(records, IMAGES, self.data)

    def data(self, image: Image, revision: int) -> dict[str, Any]:
        return {
            "id": image.id,
            "name": image.name,
            "description": image.description,
            "labels": image.labels,
            "state": image.state,
            "cmdline": image.cmdline,
            "files": [msgspec.structs.asdict(file) for file in image.files],
            "tags": image.tags,
            "protected": image.protected,
            "tasks": [_task(task) for task in image.tasks],
            "hints": msgspec.structs.asdict(image.hints),
            "created_at": image.created_at,
            "updated_at": image.updated_at,
            "revision": revision,
        }


def _task(task: FileTask) -> dict[str, Any]:
    """Without what only the server needs: where its bytes gather."""
    return {
        "role": task.role,
        "phase": task.phase,
        "url": task.url,
        "done_bytes": task.done_bytes,
        "size_bytes": task.size_bytes,
        "requested_at": task.requested_at,
        "problem": msgspec.structs.asdict(task.problem) if task.problem else None,
    }
