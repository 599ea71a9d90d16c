"""Keeps the shelf and the records in step: what is shown gets recorded, what no record uses any more goes.

Files are shown before the record is written, and taken away after it is gone, under one turn: of two images with the
same bytes neither loses them to the other.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from novacron.clock import Clock
from novacron.control.images import catalogue
from novacron.control.images.inspect import Inspected
from novacron.control.images.shelf import Arrived, Shelf
from novacron.control.images.turn import Turn
from novacron.control.once import Change, Once, Outcome
from novacron.control.store.kinds import IMAGES
from novacron.control.store.records import Records
from novacron.errors import NotFound, StoreUnavailable
from novacron.model.image import FileRole, Image, ImageFile, file_of

Held = frozenset[str] | None


class Custody:
    """turn: held by whoever changes which files records point at."""

    def __init__(self, records: Records, clock: Clock, shelf: Shelf, pool_dir: Path) -> None:
        self._records = records
        self._clock = clock
        self._shelf = shelf
        self.turn = Turn(pool_dir)

    async def sweep(self, *, at_start: bool) -> None:
        """End what notes there are; at the start also what was being received. :raise Unavailable: no pool."""
        async with self.turn:
            await self._records.refresh()  # other servers keep files too
            for note, digest in await self._shelf.notes():
                if digest or at_start:
                    await self._end(note, digest)

    async def keep(
        self,
        image_id: str,
        file: ImageFile,
        arrived: Arrived,
        held: Held,
        *,
        once: Once | None = None,
        found: Inspected | None = None,
    ) -> Outcome:
        """Show the file and record it; whatever no record points at afterwards is taken away again."""

        def change(image: Image) -> Image:
            catalogue.check_pending(image, "change the files of")
            new = catalogue.with_file(image, file, self._clock.wall())
            return msgspec.structs.replace(new, hints=found.hints) if found else new

        async with self.turn:
            notes = [await self._shelf.show(arrived)]
            try:
                before = file_of(self._records.find(IMAGES, image_id).record, file.role)
                if before is not None:
                    notes.append(await self._shelf.note(before.digest))
                return await Change(self._records, IMAGES, image_id, held, once).write(change)
            except StoreUnavailable:
                notes.clear()  # it may be recorded or not: the next start settles it
                raise
            finally:
                await self.settle(notes)

    async def remove(self, image_id: str, role: FileRole, held: Held) -> Outcome:
        """Take a pending image's file away, and the work on it. :raise NotFound: it has neither."""

        def change(image: Image) -> Image:
            catalogue.check_pending(image, "change the files of")
            new = catalogue.without(image, role, self._clock.wall())
            if new == image:
                raise NotFound(f"image {image.name} has no {role.value} file, and none is on its way")
            return new

        async with self.turn:
            before = file_of(self._records.find(IMAGES, image_id).record, role)
            notes = [await self._shelf.note(before.digest)] if before else []
            try:
                return await Change(self._records, IMAGES, image_id, held).write(change)
            except StoreUnavailable:
                notes.clear()
                raise
            finally:
                await self.settle(notes)

    async def settle(self, notes: list[Path]) -> None:
        """End notes by what the records say now."""
        if not notes:
            return
        await self._records.refresh()
        for note in notes:
            await self._end(note, note.suffix[1:])

    async def _end(self, note: Path, digest: str) -> None:
        mine = catalogue.is_an_images(self._records, digest)
        lent = not mine and bool(digest) and catalogue.is_a_volumes(self._records, digest)
        await self._shelf.settle(note, used=mine, keep=lent)
