"""Which disks are copied for a move, and where to: the pure decision."""

from __future__ import annotations

import datetime

import msgspec

from novacron.control.migrations.disks import DiskAt, Luggage, carried, luggage
from novacron.control.scheduler.placement import Candidate
from novacron.model.machine import Disk
from novacron.model.node import Node, NodeFacts, NodeState
from novacron.model.pool import Pool, PoolDriver, Reach
from novacron.model.vm import Desired, Vm, VmSpec
from novacron.model.volume import Place, Volume, alone, lies_in, swapped

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
GIB = 1 << 30


def pool(name: str, *, shared: bool = False, free: int = 100 * GIB, **more: object) -> Pool:
    reach = {
        node: Reach(available=True, checked_at=NOW, free_bytes=free, size_bytes=200 * GIB) for node in ("one", "other")
    }
    made = Pool(
        id=f"pool-{name}",
        name=name,
        driver=PoolDriver.DIRECTORY,
        created_at=NOW,
        updated_at=NOW,
        options={"path": f"/srv/{name}"},
        shared=shared,
        reach=reach,
    )
    return msgspec.structs.replace(made, **more)


DEFAULT = pool("default", shared=True, options={})


def disk(volume_id: str, at: Pool, node: str = "", used: int = GIB) -> DiskAt:
    volume = Volume(
        id=volume_id,
        name=volume_id,
        pool_id=at.id,
        size_bytes=10 * GIB,
        created_at=NOW,
        updated_at=NOW,
        node_id=node,
        used_bytes=used,
    )
    pool_id = "" if at is DEFAULT else at.id
    return DiskAt(disk=Disk(volume_id=volume_id, size_bytes=10 * GIB, pool_id=pool_id), volume=volume, pool=at)


def candidate(node_id: str, own_pool: str = "") -> Candidate:
    facts = NodeFacts(
        hostname=node_id,
        kernel="6.1",
        architecture="x86_64",
        boot_id="b",
        cpu_model="qemu64",
        cpu_flags=(),
        cpu_count=2,
        memory_mib=1024,
        agent_version="1",
        pool_ids=(own_pool,),
    )
    return Candidate(
        node=Node(
            id=node_id,
            name=node_id,
            state=NodeState.UP,
            state_since=NOW,
            created_at=NOW,
            updated_at=NOW,
            facts=facts if own_pool else None,
        ),
    )


ONE, OTHER = candidate("one"), candidate("other")


def packed(
    *disks: DiskAt, to: Candidate = OTHER, snapshots: int = 0, belongings: bool = False, **wanted: Pool
) -> Luggage:
    return luggage(disks, wanted, ONE, to, snapshots=snapshots, belongings=belongings)


def test_what_nodes_share_stays_and_must_be_reached() -> None:
    found = packed(disk("v", pool("nas", shared=True)), disk("w", DEFAULT))
    assert found.moves == ()
    assert [need.name for need in found.pools] == ["nas"]
    assert found.own


def test_what_they_do_not_share_is_copied_into_the_same_pool() -> None:
    local = pool("local")
    (move,) = packed(disk("v", local, "one")).moves
    assert (move.from_pool_id, move.to_pool_id, move.to_disk_pool_id) == (local.id, local.id, local.id)
    assert move.used_bytes == GIB
    (need,) = packed(disk("v", local, "one")).pools
    assert need.node_id == ""


def test_a_pool_that_is_asked_for_is_where_it_goes() -> None:
    local, nas = pool("local"), pool("nas", shared=True)
    found = packed(disk("v", local, "one"), disk("w", DEFAULT), v=nas, w=nas)
    assert [(move.volume_id, move.to_pool_id) for move in found.moves] == [("v", nas.id), ("w", nas.id)]
    assert not found.own
    assert [need.name for need in found.pools] == ["nas"]
    assert packed(disk("v", nas), v=nas).moves == ()


def test_what_is_beside_the_disks_goes_from_one_own_pool_to_the_other() -> None:
    here, same, other, none = (
        candidate("one", "p"),
        candidate("other", "p"),
        candidate("other", "q"),
        candidate("other"),
    )

    def found(to: Candidate, *, belongings: bool = True, unrecorded: bool = False) -> tuple[bool, bool]:
        one = luggage((), {}, here, to, snapshots=0, belongings=belongings, unrecorded=unrecorded)
        return one.belongings, one.own

    assert found(other) == (True, False)
    assert found(same) == found(here) == (False, False)
    assert found(none) == (False, True)  # there is no place for it: the pool's own filter refuses the node
    assert found(other, belongings=False) == (False, False)
    assert found(other, unrecorded=True) == (True, True)  # a disk there that is not known ties it all the same


def test_snapshots_and_room_are_reasons() -> None:
    local = pool("local")
    assert [one.code for one in packed(disk("v", local, "one"), snapshots=2).cannot] == ["disk.has_snapshots"]
    assert packed(disk("v", pool("nas", shared=True)), snapshots=2).cannot == ()
    small = pool("small", free=GIB // 2)
    (why,) = packed(disk("v", local, "one"), v=small).cannot
    assert why.code == "pool.short"
    assert "small" in why.message
    unknown = pool("unknown", reach={})
    assert packed(disk("v", local, "one"), v=unknown).cannot == ()


def test_the_records_follow_there_and_back() -> None:
    local, nas = pool("local"), pool("nas", shared=True)
    disks = (disk("v", local, "one"), disk("w", nas))
    moves = packed(*disks, v=nas).moves
    spec = VmSpec(image_id="i", disks=tuple(one.disk for one in disks))
    vm = Vm(id="vm", name="vm", spec=spec, booted=spec, desired=Desired.RUNNING, created_at=NOW, updated_at=NOW)
    there = carried(vm, moves)
    assert [one.pool_id for one in there.spec.disks] == [nas.id, nas.id]
    assert there.booted == there.spec
    assert carried(there, moves, back=True) == vm
    volume = msgspec.structs.replace(disks[0].volume, other=Place(pool_id=nas.id))
    assert lies_in(volume, local.id)
    assert lies_in(volume, nas.id)
    moved = swapped(volume)
    assert (moved.pool_id, moved.node_id, moved.other) == (nas.id, "", Place(pool_id=local.id, node_id="one"))
    assert swapped(moved) == volume
    assert alone(moved).other is None
