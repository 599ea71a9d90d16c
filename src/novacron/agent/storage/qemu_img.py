"""The one place that runs qemu-img: whole nodes with their formats, so that it looks into no file to find out."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from novacron.agent.storage.tool import COPY, QUICK, Limits, Tools, at
from novacron.errors import DriverError


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as a tool opens it: the node with everything below it, the descriptors it names, and as whom."""

    node: dict[str, object]
    descriptors: tuple[int, ...] = ()
    uid: int | None = None
    objects: tuple[dict[str, object], ...] = ()  # secrets the node names

    @property
    def name(self) -> str:
        return f"json:{msgspec.json.encode(self.node).decode()}"


class QemuImg:
    """qemu-img's verbs. Each raises what Tools.run raises."""

    def __init__(self, tools: Tools, program: str = "qemu-img") -> None:
        self._tools = tools
        self._program = program

    async def create(self, descriptor: int, size_bytes: int, child_of: tuple[str, str] | None = None) -> None:
        """An empty qcow2 volume in an open file. child_of: name and format of what is below; it is not opened."""
        below = ("-u", "-b", child_of[0], "-F", child_of[1]) if child_of else ()
        words = ("-q", "-f", "qcow2", "-o", "compat=1.1", *below, at(descriptor), str(size_bytes))
        await self._tools.run(self._program, "create", *words, descriptors=(descriptor,))

    async def resize(self, volume: Opened, size_bytes: int) -> None:
        await self._on(volume, "resize", "-q", volume.name, str(size_bytes))

    async def snapshots(self, volume: Opened) -> tuple[str, ...]:
        """Names of the snapshots inside it."""
        answer = await self._on(volume, "info", "--output=json", volume.name)
        try:
            found = msgspec.json.decode(answer, type=_Info)
        except msgspec.DecodeError as wrong:
            raise DriverError(f"qemu-img's answer cannot be read: {wrong}") from wrong
        return tuple(one.name for one in found.snapshots)

    async def snapshot(self, volume: Opened, verb: str, snapshot_id: str) -> None:
        """verb: c creates, a applies, d deletes."""
        await self._on(volume, "snapshot", "-q", f"-{verb}", snapshot_id, volume.name)

    async def convert(
        self, volume: Opened, to: Opened, form: str, *, snapshot_id: str = "", compress: bool = False
    ) -> None:
        """Write its content (as of a snapshot inside it) over `to`, which is there and is told whole.

        `form` is the format of `to`; it keeps its own header and size.
        """
        words = ("-q", "-n", *_as_of(snapshot_id), *(("-c",) if compress else ()), "-O", form, volume.name, to.name)
        await self._on(volume, "convert", *words, beside=to, limits=COPY)

    async def export(self, volume: Opened, descriptor: int, *, snapshot_id: str = "") -> None:
        """Write its content to an open file as a compressed qcow2 file of its own."""
        words = ("-q", "-c", *_as_of(snapshot_id), "-O", "qcow2", volume.name, at(descriptor))
        beside = Opened(node={}, descriptors=(descriptor,))
        await self._on(volume, "convert", *words, beside=beside, limits=COPY)

    async def head(self, volume: Opened, descriptor: int, size_bytes: int) -> None:
        """Copy its first bytes, as they are (its node is of format raw), into an open file."""
        words = ("-f", "raw", "-O", "raw", f"bs={size_bytes}", "count=1", f"if={volume.name}", f"of={at(descriptor)}")
        await self._on(volume, "dd", *words, beside=Opened(node={}, descriptors=(descriptor,)))

    async def _on(
        self, volume: Opened, verb: str, *words: str, beside: Opened | None = None, limits: Limits = QUICK
    ) -> bytes:
        objects = (*volume.objects, *(beside.objects if beside else ()))
        told = tuple(word for one in objects for word in ("--object", _text(one)))
        descriptors = (*volume.descriptors, *(beside.descriptors if beside else ()))
        return await self._tools.run(
            self._program, verb, *told, *words, descriptors=descriptors, uid=volume.uid, limits=limits
        )


class _Snapshot(msgspec.Struct):
    name: str


class _Info(msgspec.Struct):
    snapshots: tuple[_Snapshot, ...] = ()


def _as_of(snapshot_id: str) -> tuple[str, ...]:
    return ("-l", f"snapshot.name={snapshot_id}") if snapshot_id else ()


def _text(value: Mapping[str, object]) -> str:
    return msgspec.json.encode(value).decode()
