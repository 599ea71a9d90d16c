"""An image as the API shows it: the shape of wire.rest.images.Image."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.control.encoded import Encoded
from novacron.control.store.records import IMAGES, Records
from novacron.model.image import Image


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
            "created_at": image.created_at,
            "updated_at": image.updated_at,
            "revision": revision,
        }
