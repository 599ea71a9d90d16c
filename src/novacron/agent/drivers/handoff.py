"""What the two sides of a move tell each other: where to send, what stands still, what has come."""

from __future__ import annotations

from pathlib import Path

import msgspec

from novacron.model.machine import MachineReport


class DiskReception(msgspec.Struct, frozen=True, kw_only=True):
    """Where a target takes in the disks that move with their machine, and the key both ends must hold (a secret).

    layered: those of them that are children of an image there, so that only what is their own need be copied.
    resumable: those of which it can be told, later, what has come; resumed: those that hold what came with an earlier
    migration, `resumes`.
    """

    host: str
    port: int
    key_hex: str
    layered: tuple[str, ...] = ()
    resumable: tuple[str, ...] = ()
    resumed: tuple[str, ...] = ()
    resumes: str = ""


class Reception(msgspec.Struct, frozen=True, kw_only=True):
    """Where a target listens for one migration, and the key both ends must hold (hex; a secret: never logged).

    socket: a unix socket of this node in place of all three, where its stream proxy is or will come. patience_s: so
    long may nothing move there before it is given up, if that is longer than is usual. channels: connections that
    memory must come over at once. disks: likewise for disks; None:
    none are awaited.
    """

    host: str = ""
    port: int = 0
    key_hex: str = ""
    socket: Path | None = None
    patience_s: float = 0.0
    channels: int = 1
    disks: DiskReception | None = None


class Awaited(msgspec.Struct, frozen=True, kw_only=True):
    """What a target is to wait for at `host`: a stream, and disks that the source fills before.

    receives: those disks' volumes. proxied: the stream comes through this node's stream proxy, for which the target
    waits at a unix socket in its own directory. channels: connections that memory comes over at once, if it can; the
    reception says how many it will be. paused: its guest stands still at the source, and `take_over` does not let it
    run.
    """

    migration_id: str
    host: str
    receives: tuple[str, ...] = ()
    proxied: bool = False
    channels: int = 1
    paused: bool = False


class Departure(msgspec.Struct, frozen=True, kw_only=True):
    """Both sides stand still, and the source will not go on by itself.

    stopped_ago_ms: time since the source's vCPUs stopped, when this was made. whole: the stream has been received
    whole; else `open_postcopy` is to follow.
    """

    stopped_ago_ms: float
    whole: bool = True


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """Whether all memory is on the target; if not, the link broke, and the rest waits for another one."""

    done: bool
    why: str = ""


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """The target runs. resumed_ago_ms: time since its vCPUs started, when this was made."""

    resumed_ago_ms: float
    report: MachineReport
