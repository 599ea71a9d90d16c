"""What a simulation came to: availability, moves, refusals and costs, from what was noted. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from novacron.model.migration import Migration, MigrationState
from novacron.simulation.chronicle import Chronicle, Entry, Refusal
from novacron.simulation.presence import Outage
from novacron.simulation.server import Costs


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Of times: how many, their sum, and what half, 95 in 100 and all of them were within."""

    count: int
    total_s: float
    p50_s: float
    p95_s: float
    max_s: float


class StillDown(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that was to run at the end and did not."""

    vm: str
    for_s: float


class Availability(msgspec.Struct, frozen=True, kw_only=True):
    """wanted_s: for how long VMs were to run, all together. restarts: outages that ended by the VM running again.
    pauses: times it stood still as it moved.
    """

    percent: float
    wanted_s: float
    downtime_s: float
    restarts: Spread
    pauses: Spread
    still_down: tuple[StillDown, ...]


class Moves(msgspec.Struct, frozen=True, kw_only=True):
    """Migrations that ended. durations: of those that were completed."""

    by_state: Mapping[str, int]
    durations: Spread
    bytes_transferred: int


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What it took this machine. wall_s, cpu_s: from the start of the scenario's time to its end.

    store_commits: transactions the servers wrote, those of the set-up too, as node_calls (asked of nodes);
    records_changed: in the scenario's time; worker_failures: workers that died and were started again.
    """

    wall_s: float
    cpu_s: float
    virtual_s: float
    store_commits: int
    node_calls: int
    records_changed: int
    worker_failures: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """violations: moments in which a VM was to run twice. It must be empty."""

    nodes: int
    servers: int
    vms: int
    availability: Availability
    takeovers: int
    fences: int
    migrations: Moves
    requests: Mapping[str, int]
    refusals: tuple[Refusal, ...]
    cost: Cost
    violations: tuple[str, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a simulation tells."""

    scenario: str
    seed: int
    timeline: tuple[Entry, ...]
    summary: Summary


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Of the whole: who took part, how it ended, and what it took. names: of VMs, by id."""

    nodes: int
    servers: int
    names: Mapping[str, str]
    ends_s: float
    wall_s: float
    cpu_s: float
    violations: tuple[str, ...]


def spread(times_s: Sequence[float]) -> Spread:
    """Zeros when there are none."""
    ordered = sorted(times_s)

    def within(share: float) -> float:
        return round(ordered[math.ceil(share * len(ordered)) - 1], 3) if ordered else 0.0

    total_s = round(sum(ordered), 3)
    return Spread(count=len(ordered), total_s=total_s, p50_s=within(0.5), p95_s=within(0.95), max_s=within(1.0))


def summarised(chronicle: Chronicle, costs: Costs, measured: Measured) -> Summary:
    """measured.ends_s: by the clock that `chronicle.presence` was told."""
    outages = chronicle.presence.outages(measured.ends_s)
    return Summary(
        nodes=measured.nodes,
        servers=measured.servers,
        vms=len(measured.names),
        availability=_availability(outages, chronicle.presence.wanted_s(measured.ends_s), measured),
        takeovers=chronicle.takeovers,
        fences=chronicle.fences,
        migrations=_moves(chronicle.migrations),
        requests=dict(sorted(chronicle.done.items())),
        refusals=tuple(chronicle.refusals),
        cost=Cost(
            wall_s=round(measured.wall_s, 2),
            cpu_s=round(measured.cpu_s, 2),
            virtual_s=round(chronicle.now_s, 3),
            store_commits=costs.commits,
            node_calls=costs.calls,
            records_changed=chronicle.records_changed,
            worker_failures=costs.worker_failures,
        ),
        violations=measured.violations,
    )


def _availability(outages: Sequence[Outage], wanted_s: float, measured: Measured) -> Availability:
    down_s = sum(one.lasts_s(measured.ends_s) for one in outages)
    ended = [one for one in outages if one.to_s is not None]
    still = (
        StillDown(vm=measured.names.get(one.vm_id, one.vm_id), for_s=round(one.lasts_s(measured.ends_s), 3))
        for one in outages
        if one.to_s is None
    )
    return Availability(
        percent=round(100 * (1 - down_s / wanted_s), 4) if wanted_s else 100.0,
        wanted_s=round(wanted_s, 3),
        downtime_s=round(down_s, 3),
        restarts=spread([one.lasts_s(0.0) for one in ended if not one.pause]),
        pauses=spread([one.lasts_s(0.0) for one in ended if one.pause]),
        still_down=tuple(sorted(still, key=lambda one: one.vm)),
    )


def _moves(migrations: Sequence[Migration]) -> Moves:
    completed = [one for one in migrations if one.state is MigrationState.COMPLETED]
    took_s = [one.figures.total_ms / 1e3 for one in completed if one.figures.total_ms is not None]
    return Moves(
        by_state=dict(sorted(Counter(one.state.value for one in migrations).items())),
        durations=spread(took_s),
        bytes_transferred=sum(one.figures.bytes_transferred or 0 for one in migrations),
    )
