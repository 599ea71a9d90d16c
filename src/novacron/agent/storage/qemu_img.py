"""The one place that runs qemu-img: whole nodes with their formats, so that it looks into no file to find out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from novacron.agent.storage.tool import COPY, QUICK, Limits, Tools, at
from novacron.errors import DriverError

Answer = TypeVar("Answer")


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as a tool opens it: the node with everything below it, the descriptors it names, and as whom."""

    node: dict[str, object]
    descriptors: tuple[int, ...] = ()
    uid: int | None = None
    objects: tuple[dict[str, object], ...] = ()  # secrets the node names

    @property
    def name(self) -> str:
        return f"json:{msgspec.json.encode(self.node).decode()}"

    def only_read(self) -> Opened:
        """To be read beside a machine that writes to it: its snapshots, for one."""
        return msgspec.structs.replace(self, node={**self.node, "read-only": True, "force-share": True})


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
        return tuple(one.name for one in (await self._info(volume)).snapshots)

    async def size(self, volume: Opened) -> int:
        """Its size in bytes, as a guest would see it."""
        return (await self._info(volume)).size_bytes

    async def measure(self, size_bytes: int) -> int:
        """How many bytes a qcow2 volume of a size takes at most, without snapshots."""
        words = ("-O", "qcow2", "--output=json", "--size", str(size_bytes))
        return self._read(await self._tools.run(self._program, "measure", *words), _Measure).whole_bytes

    async def forget_below(self, volume: Opened) -> None:
        """Take the name of what is below out of its header; its content stays as it is."""
        await self._on(volume, "rebase", "-q", "-u", "-b", "", volume.name)

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

    async def _info(self, volume: Opened) -> _Info:
        alone = (
            {**volume.node, "backing": None} if volume.node.get("backing") else volume.node
        )  # it opens nothing below
        seen = msgspec.structs.replace(volume, node=alone)
        return self._read(await self._on(seen, "info", "--output=json", seen.name), _Info)

    def _read(self, answer: bytes, kind: type[Answer]) -> Answer:
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.DecodeError as wrong:
            raise DriverError(f"qemu-img's answer cannot be read: {wrong}") from wrong

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
    size_bytes: int = msgspec.field(name="virtual-size")
    snapshots: tuple[_Snapshot, ...] = ()


class _Measure(msgspec.Struct):
    whole_bytes: int = msgspec.field(name="fully-allocated")


def _as_of(snapshot_id: str) -> tuple[str, ...]:
    return ("-l", f"snapshot.name={snapshot_id}") if snapshot_id else ()


def _text(value: Mapping[str, object]) -> str:
    return msgspec.json.encode(value).decode()
