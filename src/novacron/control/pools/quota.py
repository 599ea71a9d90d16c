"""How much may be promised: whether volumes that are to be made, or to grow, fit within every limit that applies.

refusals        the decision: pure, over limits and what is asked of each
check           the same for volumes as they are to be; every path that makes one or has it grow asks it once
promised_bytes  what is promised in a pool already
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from novacron.control.store.kinds import POOLS, SNAPSHOTS, VOLUMES
from novacron.control.store.records import Records
from novacron.errors import NoRoom, Reason
from novacron.model.snapshot import SnapshotState
from novacron.model.volume import Volume, lies_in, places


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that applies, and what is asked of it. name: whose it is; limit_bytes 0: none; lift: what raises it."""

    noun: str
    name: str
    limit_bytes: int
    used_bytes: int
    asked_bytes: int
    lift: str


def refusals(scopes: Iterable[Scope]) -> list[Reason]:
    """A reason for each limit that would be exceeded. What asks for nothing passes, however much is used."""
    return [
        _refusal(scope)
        for scope in scopes
        if scope.limit_bytes and scope.asked_bytes > 0 and scope.used_bytes + scope.asked_bytes > scope.limit_bytes
    ]


def check(records: Records, wanted: Sequence[Volume]) -> None:
    """May these volumes be as they are here, whether new or grown?

    To be asked in the turn that records them, under its ticket (see control.room): no two get the last that is left.

    :raise NoRoom: no; a reason for each limit that would be exceeded.
    """
    reasons = refusals(_pools(records, wanted))
    if reasons:
        raise NoRoom("; ".join(reason.message for reason in reasons), reasons)


def promised_bytes(records: Records, pool_id: str) -> int:
    """What the volumes in a pool would take if their guests filled them."""
    return _sum(_held(records), pool_id)


def _pools(records: Records, wanted: Sequence[Volume]) -> Iterator[Scope]:
    """The quotas of the pools the volumes lie in."""
    for pool_id in sorted({place.pool_id for volume in wanted for place in places(volume)}):
        stored = records.get(POOLS, pool_id)
        if stored is None or not stored.record.quota_bytes:
            continue  # what is promised in it need not be counted
        pool, held = stored.record, _held(records)
        mine = [volume for volume in wanted if lies_in(volume, pool_id)]
        known = ((volume.id in held and lies_in(held[volume.id], pool_id), volume.id) for volume in mine)
        before = (held[volume_id].size_bytes if is_there else 0 for is_there, volume_id in known)
        yield Scope(
            noun="storage pool",
            name=pool.name,
            limit_bytes=pool.quota_bytes,
            used_bytes=_sum(held, pool_id),
            asked_bytes=sum(max(0, new.size_bytes - old) for new, old in zip(mine, before, strict=True)),
            lift=f"novacron pool update {pool.name} --quota SIZE",
        )


def _held(records: Records) -> dict[str, Volume]:
    """Every volume by its id, as large as it is, or will be again once its VM has gone back to a snapshot."""
    held = {stored.record.id: stored.record for stored in records.all(VOLUMES)}
    for stored in records.all(SNAPSHOTS):
        if stored.record.state is SnapshotState.REVERTING:
            for disk in stored.record.spec.disks:
                volume = held.get(disk.volume_id)
                if volume is not None and volume.size_bytes < disk.size_bytes:
                    held[volume.id] = msgspec.structs.replace(volume, size_bytes=disk.size_bytes)
    return held


def _sum(held: Mapping[str, Volume], pool_id: str) -> int:
    # Twice within a pool, on two nodes, counts once: a quota is of what may be promised.
    return sum(volume.size_bytes for volume in held.values() if lies_in(volume, pool_id))


def _refusal(scope: Scope) -> Reason:
    left = max(0, scope.limit_bytes - scope.used_bytes)
    return Reason(
        "quota.exceeded",
        f"{scope.noun} {scope.name} may promise {scope.limit_bytes} bytes: {scope.used_bytes} are promised, "
        f"{scope.asked_bytes} more are asked for",
        subject=scope.name,
        remedy=f"ask for at most {left} bytes, delete volumes there, or raise its quota: {scope.lift}",
    )
