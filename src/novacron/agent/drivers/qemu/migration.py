"""A migration in QEMU's words: what is switched on, and what its answers mean to us. Pure.

The sequence (measured safe on 7.2 to 10): the target waits with `-S -incoming defer`; both sides get the
capabilities below, the source its goals; `migrate`; at `pre-switchover` the guest stands and the source says
`migrate-continue`; at `completed` both sides are paused and whole. Who runs on is decided elsewhere.

In post-copy the source says `stop` and `migrate-start-postcopy`, and waits at `pre-switchover` until the ownership has
moved; then `migrate-continue`, and at `postcopy-active` the target gets what it needs to run.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Collection

import msgspec

from novacron.agent.drivers.handoff import Reception
from novacron.agent.drivers.qemu.convergence import (
    THROTTLE_FROM_PERCENT,
    THROTTLE_STEP_PERCENT,
    Sample,
    memory_ms,
    throttle_percent,
)
from novacron.errors import Unsupported
from novacron.model.migration import Figures, Goals, Progress, Strategy, Tactics

LATE_ACTIVATION = "late-block-activate"
CAPABILITIES = ("events", "return-path", "pause-before-switchover", LATE_ACTIVATION)
"""return-path: without it a source believes in a target that died while loading. late-block-activate: nobody holds
the disks' locks between the two, so that the source can continue when the target is discarded."""

PROXIED = "stream-proxy"
"""Driver feature: streams can come and go through the agents' stream proxies."""

CHANNELS = "parallel-channels"
"""Driver feature: memory can go over several connections at once, see `sends_parallel`."""

POSTCOPY = "postcopy-ram"
PARALLEL = "multifd"
THROTTLE = "auto-converge"

NO_BOUND_MS = 2_000_000  # the most QEMU takes
DEFAULT_DOWNTIME_MS = 300
DEFAULT_BANDWIDTH = 128 << 20
DEFAULT_CHANNELS = 2
DEFAULT_THROTTLE_PERCENT = 99
ANNOUNCE = {"initial": 20, "max": 200, "rounds": 6, "step": 40}  # frames at 0, 20, 80, 180, 320, 500 ms


class Memory(msgspec.Struct, rename="kebab"):
    """`query-migrate`'s account of memory. mbps is megabits per second; dirty_pages_rate is pages per second."""

    transferred: int = 0
    remaining: int = 0
    total: int = 0
    mbps: float = 0.0
    dirty_pages_rate: int = 0
    dirty_sync_count: int = 0
    page_size: int = 4096


class TcpAddress(msgspec.Struct):
    """Where a target listens. QEMU gives the port as text."""

    type: str
    host: str = ""
    port: str = ""


class Info(msgspec.Struct, rename="kebab"):
    """`query-migrate`. Times in ms. downtime is stale until the source's run state is postmigrate."""

    status: str = "none"
    total_time: int = 0
    setup_time: int = 0
    downtime: int | None = None
    ram: Memory = msgspec.field(default_factory=Memory)
    error_desc: str = ""
    socket_address: list[TcpAddress] = []


def require(features: Collection[str], tactics: Tactics = Tactics(), channels: int = 1) -> None:  # noqa: B008 (frozen)
    """:raise Unsupported: this QEMU lacks a capability we cannot do without."""
    if channels > 1 and not sends_parallel(features):
        raise Unsupported("this QEMU cannot send memory over several connections safely: it is older than 9.0")
    missing = [name for name in wanted(tactics) if f"migrate.{name}" not in features]
    if missing:
        raise Unsupported(f"this QEMU cannot hand a machine over safely: it lacks {', '.join(missing)}")


def sends_parallel(features: Collection[str]) -> bool:
    """Whether memory can go over several connections at once without danger to the guest.

    QEMU before 9.0 has it, and may hang or die as a source when one of its connections fails: 9.0 mended that, and is
    known by a parameter that came with it.
    """
    return {f"migrate.{PARALLEL}", "migrate.parameter.zero-page-detection"} <= set(features)


def wanted(tactics: Tactics) -> tuple[str, ...]:
    """The capabilities a source is given."""
    postcopy = (POSTCOPY,) if tactics.strategy is not Strategy.PRECOPY else ()
    return (*CAPABILITIES, *postcopy, *((THROTTLE,) if tactics.max_throttle_percent else ()))


def capabilities(
    *,
    on: bool,
    tactics: Tactics = Tactics(),  # noqa: B008 (frozen)
    channels: int = 1,
) -> dict[str, object]:
    """Arguments for migrate-set-capabilities: what a transfer of ours needs, or none of it.

    channels: connections that memory goes over; 1: the stream's own. What is not needed is switched off by name: a
    source was a target before, perhaps with what does not go together with this.
    """
    states = dict.fromkeys((*CAPABILITIES, POSTCOPY, THROTTLE, PARALLEL), False)
    if on:
        states |= dict.fromkeys(wanted(tactics), True) | {PARALLEL: channels > 1}
    return {"capabilities": [{"capability": name, "state": state} for name, state in states.items()]}


def only(name: str, *, on: bool = True) -> dict[str, object]:
    """Arguments for migrate-set-capabilities: this one more, or less."""
    return {"capabilities": [{"capability": name, "state": on}]}


def source_parameters(
    goals: Goals,
    credentials: str,
    tactics: Tactics = Tactics(),  # noqa: B008 (frozen)
    *,
    proxied: bool = False,
    channels: int = 1,
) -> dict[str, object]:
    """Arguments for migrate-set-parameters of a transfer with these goals, tactics and TLS credentials.

    proxied: the proxy keeps to the bandwidth: QEMU counts bytes before they are made small. channels: see
    `capabilities`.

    A guest that stands still has no bound to keep, and gets one all the same: with none QEMU sends all memory in its
    last step, in which it answers nothing.
    """
    bandwidth = 0 if proxied else goals.bandwidth_bytes_per_s
    parameters = default_parameters() | {
        **pace(bandwidth),
        "tls-creds": credentials,
        "multifd-channels": max(channels, DEFAULT_CHANNELS),
    }
    if not tactics.stands_still:
        parameters["downtime-limit"] = memory_ms(goals) or NO_BOUND_MS
    most = throttle_percent(tactics)
    if most:
        parameters |= {"cpu-throttle-initial": min(THROTTLE_FROM_PERCENT, most), "max-cpu-throttle": most}
    return parameters


def pace(bytes_per_s: int) -> dict[str, object]:
    """Arguments for migrate-set-parameters: how fast memory is sent, also while it is; 0: as it goes."""
    return {"max-bandwidth": bytes_per_s, "max-postcopy-bandwidth": bytes_per_s}


def target_parameters(credentials: str, channels: int = 1) -> dict[str, object]:
    """Arguments for migrate-set-parameters of a target: the key, the connections that memory comes over, and how it
    tells the network where it is now.
    """
    announced = {f"announce-{name}": value for name, value in ANNOUNCE.items()}
    return {"tls-creds": credentials, "multifd-channels": max(channels, DEFAULT_CHANNELS), **announced}


def default_parameters() -> dict[str, object]:
    """What QEMU starts with: the next transfer must not inherit this one's limits or keys."""
    return {
        "max-bandwidth": DEFAULT_BANDWIDTH,
        "max-postcopy-bandwidth": 0,
        "multifd-channels": DEFAULT_CHANNELS,
        "cpu-throttle-initial": THROTTLE_FROM_PERCENT,
        "cpu-throttle-increment": THROTTLE_STEP_PERCENT,
        "max-cpu-throttle": DEFAULT_THROTTLE_PERCENT,
        "downtime-limit": DEFAULT_DOWNTIME_MS,
        "tls-creds": "",
        "tls-hostname": "",
    }


def uri(host: str, port: int) -> str:
    """A TCP address as QEMU spells it. :raise Unsupported: host is no IP address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise Unsupported(f"streams are sent to IP addresses, not to {host!r}") from None
    return f"tcp:[{address}]:{port}" if address.version == 6 else f"tcp:{address}:{port}"


def address_of(reception: Reception) -> str:
    """Where the source connects to."""
    return f"unix:{reception.socket}" if reception.socket else uri(reception.host, reception.port)


def progress_of(info: Info, now: datetime.datetime) -> Progress:
    """How far it is. The end is predicted only while memory leaves faster than the guest dirties it."""
    memory = info.ram
    rate = memory.mbps * 1e6 / 8
    dirty_rate = float(memory.dirty_pages_rate * memory.page_size)
    return Progress(
        at=now,
        total_bytes=memory.total,
        transferred_bytes=memory.transferred,
        remaining_bytes=memory.remaining,
        rate_bytes_per_s=rate,
        dirty_rate_bytes_per_s=dirty_rate,
        iteration=memory.dirty_sync_count,
        predicted_end=now + datetime.timedelta(seconds=memory.remaining / (rate - dirty_rate))
        if rate > dirty_rate
        else None,
    )


def sample_of(info: Info, now_s: float) -> Sample:
    """What the decision about a transfer looks at."""
    memory = info.ram
    return Sample(
        at_s=now_s,
        remaining_bytes=memory.remaining,
        transferred_bytes=memory.transferred,
        dirty_bytes_per_s=float(memory.dirty_pages_rate * memory.page_size),
        rate_bytes_per_s=memory.mbps * 1e6 / 8,
        iteration=memory.dirty_sync_count,
    )


def figures_of(info: Info, *, proxied: bool = False) -> Figures:
    """What the source measured, read once its run state is postmigrate. proxied: not how much went over the wire."""
    sending_s = (info.total_time - info.setup_time) / 1e3
    return Figures(
        setup_ms=float(info.setup_time),
        transfer_ms=float(info.total_time),
        downtime_qemu_ms=None if info.downtime is None else float(info.downtime),
        bytes_transferred=None if proxied else info.ram.transferred,
        stream_bytes=info.ram.transferred if proxied else None,
        memory_bytes=info.ram.total,
        iterations=info.ram.dirty_sync_count,
        rate_bytes_per_s=info.ram.transferred / sending_s if sending_s > 0 else None,
    )
