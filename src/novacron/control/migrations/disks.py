"""Which disks of a VM must be copied for it to run on a node, and where to. Pure.

A disk stays where it is when the node sees it there. Else it goes to the pool that was asked for, or, when nodes do not
share its pool, to the same pool on the other node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from novacron.control.scheduler.placement import Candidate
from novacron.control.scheduler.snapshot import PoolNeed
from novacron.errors import Reason
from novacron.model.machine import Disk
from novacron.model.migration import DiskMove
from novacron.model.pool import Pool, is_own
from novacron.model.vm import Vm, VmSpec
from novacron.model.volume import Volume

GIB = 1 << 30


class DiskAt(msgspec.Struct, frozen=True, kw_only=True):
    """A disk as its machine runs with it, and where it lies."""

    disk: Disk
    volume: Volume
    pool: Pool


class Luggage(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a VM's disks on one node. pools: those it must reach there; own: its own pool must be the
    source's, because something stays there; belongings: what else belongs to the VM goes from one own pool to the
    other; cannot: why its disks cannot go there at all.
    """

    moves: tuple[DiskMove, ...] = ()
    pools: tuple[PoolNeed, ...] = ()
    own: bool = False
    belongings: bool = False
    cannot: tuple[Reason, ...] = ()


def luggage(
    disks: Sequence[DiskAt],
    wanted: Mapping[str, Pool],
    source: Candidate,
    candidate: Candidate,
    *,
    snapshots: int,
    belongings: bool,
    unrecorded: bool = False,
) -> Luggage:
    """wanted: by volume id, the pool it is to be in. snapshots: how many the VM has: they lie in its disks.

    belongings: it has files beside its disks in the own pool of its node (UEFI variables, a TPM); they go to that of
    the other node, where that is another. unrecorded: there are disks in it of which nothing more is known.
    """
    moves: list[DiskMove] = []
    pools: dict[str, PoolNeed] = {}
    own = unrecorded and candidate is not source
    for one in disks:
        to = wanted.get(one.volume.id, one.pool)
        if to.id == one.pool.id and _stays(one, source, candidate):
            own = own or (is_own(to) and candidate is not source)
            need = PoolNeed(id=to.id, name=to.name, node_id=one.volume.node_id)
            pools |= {} if is_own(to) else {to.id: need}
            continue
        own = own or (is_own(to) and candidate is not source)
        pools |= {} if is_own(to) else {to.id: PoolNeed(id=to.id, name=to.name)}
        moves.append(_move(one, to))
    there, carries = own_pool(candidate), belongings and candidate is not source
    return Luggage(
        moves=tuple(moves),
        pools=tuple(pools[key] for key in sorted(pools)),
        own=own or (carries and not there),
        belongings=carries and there not in ("", own_pool(source)),
        cannot=tuple(_cannot(moves, wanted, disks, candidate, snapshots)),
    )


def own_pool(node: Candidate) -> str:
    """The id of the directory it was started with; empty: it has none."""
    facts = node.node.facts
    return facts.pool_ids[0] if facts and facts.pool_ids else ""


def _stays(one: DiskAt, source: Candidate, candidate: Candidate) -> bool:
    """Whether it is where it is to be. A default pool that nodes do not share is refused by the pool's own filter."""
    return candidate is source or one.pool.shared or not one.volume.node_id


def _move(one: DiskAt, to: Pool) -> DiskMove:
    return DiskMove(
        volume_id=one.volume.id,
        size_bytes=one.disk.size_bytes,
        from_pool_id=one.pool.id,
        to_pool_id=to.id,
        from_disk_pool_id=one.disk.pool_id,
        from_unit=one.volume.unit,
        to_disk_pool_id="" if is_own(to) else to.id,
        used_bytes=one.volume.used_bytes,
    )


def _cannot(
    moves: Sequence[DiskMove],
    wanted: Mapping[str, Pool],
    disks: Sequence[DiskAt],
    candidate: Candidate,
    snapshots: int,
) -> list[Reason]:
    node, found = candidate.node.name, []
    if moves and snapshots:
        message = f"{node}: its disks would have to be copied, and its {snapshots} snapshots would be lost"
        found.append(Reason("disk.has_snapshots", message, node, "delete its snapshots, or export them as images"))
    targets = {pool.id: pool for pool in (*wanted.values(), *(one.pool for one in disks))}
    for pool_id in sorted({move.to_pool_id for move in moves}):
        pool = targets[pool_id]
        reach = pool.reach.get(candidate.node.id)
        asked = sum(move.used_bytes for move in moves if move.to_pool_id == pool_id)
        if reach is not None and reach.size_bytes and asked > reach.free_bytes:
            message = (
                f"{node}: {asked / GIB:.1f} GiB of disks would be copied to pool {pool.name}, "
                f"which has {reach.free_bytes / GIB:.1f} GiB left there"
            )
            found.append(Reason("pool.short", message, node, "make room there, or name another pool"))
    return found


def relocated(spec: VmSpec, moves: Sequence[DiskMove], *, back: bool = False) -> VmSpec:
    """The spec with the disks where they are after the move; back: before it. Disks that are no part of it stay."""
    pools = {move.volume_id: move.from_disk_pool_id if back else move.to_disk_pool_id for move in moves}
    disks = tuple(
        msgspec.structs.replace(disk, pool_id=pools[disk.volume_id]) if disk.volume_id in pools else disk
        for disk in spec.disks
    )
    return msgspec.structs.replace(spec, disks=disks)


def carried(vm: Vm, moves: Sequence[DiskMove], *, back: bool = False) -> Vm:
    """The VM's record with the disks where they are after the move; back: before it."""
    if not moves:
        return vm
    booted = relocated(vm.booted, moves, back=back) if vm.booted else None
    return msgspec.structs.replace(vm, spec=relocated(vm.spec, moves, back=back), booted=booted)
