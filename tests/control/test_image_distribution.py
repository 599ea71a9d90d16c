"""Who fetches which image file from whom, and what is dropped when a pool keeps too many."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from novacron.control.images.cache import Cache, to_drop
from novacron.control.images.distribution import Distribution, needs, sources
from novacron.control.store.kinds import NODES, POOLS, VOLUMES
from novacron.errors import NodeUnreachable, NotFound
from novacron.model.image import FileRole, ImageFile
from novacron.model.machine import Disk
from novacron.model.node import Node, NodeFacts, NodeState
from novacron.model.pool import Pool, PoolDriver, PoolSpec, Reach
from novacron.model.volume import Volume
from novacron.testing.hand_clock import HandClock
from novacron.wire.storage import ImageDrop, ImageFetch, ImagesFound, ImagesHeld, ImageSource
from tests.control.api import NOW, Api

pytestmark = pytest.mark.anyio

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
OTHER = PoolSpec(id="0190b36e-0000-7000-8000-00000000cccc", options={"path": "/elsewhere"})
OWN = PoolSpec(id="0190b36e-0000-7000-8000-00000000aaaa")


class Nodes:
    """Agents that hold image files in memory."""

    def __init__(self) -> None:
        self.held: dict[str, set[str]] = {}
        self.calls: list[tuple[str, msgspec.Struct]] = []
        self.away: set[str] = set()

    def is_connected(self, node_id: str) -> bool:
        return node_id not in self.away

    async def call(self, node_id: str, args: msgspec.Struct, answer: type[Any], *, deadline_s: float) -> Any:
        self.calls.append((node_id, args))
        if node_id in self.away:
            raise NodeUnreachable("away")
        mine = self.held.setdefault(node_id, set())
        match args:
            case ImageFetch():
                mine.add(args.digest)
            case ImagesHeld():
                return ImagesFound(digests=tuple(sorted(mine)))
            case ImageDrop():
                mine.discard(args.digest)
        return None

    def on_progress(self, migration_id: str, listener: Any) -> None:
        pass


def disk(digest: str, pool_id: str = OTHER.id) -> Disk:
    return Disk(volume_id="v", size_bytes=1, backing_digest=digest, pool_id=pool_id)


def a_node(number: int, door: str = "yes", state: NodeState = NodeState.UP) -> Node:
    facts = NodeFacts(
        hostname="h", kernel="k", architecture="a", boot_id="b", cpu_model="c", cpu_flags=(), cpu_count=1, memory_mib=1,
        agent_version="1", image_door=f"10.0.0.{number}:1" if door else "", image_door_fingerprint=f"{number}",
    )  # fmt: skip
    return Node(
        id=f"n{number}", name=f"n{number}", state=state, created_at=NOW, updated_at=NOW, state_since=NOW, facts=facts
    )


# -- what is decided -------------------------------------------------------------------------------------------------


def test_only_disks_in_other_pools_need_anything_fetched() -> None:
    disks = [disk(A), disk(A), disk(B), disk(""), disk(C, ""), disk(D, OWN.id)]
    assert [(need.pool, need.digest) for need in needs(disks, [OTHER, OWN])] == [(OTHER, A), (OTHER, B), (OWN, D)]
    assert needs([disk(A, "")], [OTHER, OWN]) == ()


def test_up_to_three_nodes_that_have_it_are_asked_before_the_server() -> None:
    nodes = [a_node(1), a_node(2, door=""), a_node(3, state=NodeState.DOWN), a_node(4), a_node(5), a_node(6), a_node(7)]
    holders = [node.id for node in nodes if node.id != "n6"]
    asked = sources(nodes, holders, "n1")
    assert [source.door for source in asked] == ["10.0.0.4:1", "10.0.0.5:1", "10.0.0.7:1", ""]
    assert asked[0].fingerprint == "4"
    assert asked[-1] == ImageSource()
    assert sources(nodes, [], "n1") == (ImageSource(),)


@pytest.mark.parametrize(
    ("limit", "needed", "gone"),
    [
        (100, (), []),
        (60, (), []),  # exactly fits
        (59, (), [A]),  # never seen used counts as longest ago
        (50, (), [A]),
        (49, (), [A, C]),
        (10, (), [A, C, B]),
        (10, (A,), [C, B]),
        (0, (A, B, C), []),
    ],
)
def test_the_longest_unused_goes_first(limit: int, needed: tuple[str, ...], gone: list[str]) -> None:
    sizes = {A: 10, B: 20, C: 30}
    assert to_drop([A, B, C], sizes, needed, {B: 7, C: 3}, limit) == gone


def test_what_no_image_has_goes_at_once_unless_a_volume_needs_it() -> None:
    assert to_drop([A, D], {A: 10}, [], {}, 1000) == [D]
    assert to_drop([A, D], {A: 10}, [D], {}, 1000) == []


# -- what is done ----------------------------------------------------------------------------------------------------


async def image_with(api: Api, name: str, digest: str, size: int = 1000) -> None:
    await api.image(name, files=(ImageFile(role=FileRole.DISK, digest=digest, size_bytes=size),))


async def test_the_second_node_fetches_from_the_first(api: Api) -> None:
    await image_with(api, "one", A)
    first, second = await api.node("node-1"), await api.node("node-2")
    facts = msgspec.structs.replace(first.facts, image_door="10.0.0.1:9", image_door_fingerprint="f")  # type: ignore[type-var]
    await api.records.change(NODES, first.id, lambda node: msgspec.structs.replace(node, facts=facts))
    nodes = Nodes()
    distribution = Distribution(api.records, nodes)
    await distribution.bring(first.id, [disk(A)], [OTHER])
    await distribution.bring(second.id, [disk(A)], [OTHER])
    told = [(node_id, verb.sources) for node_id, verb in nodes.calls]  # type: ignore[attr-defined]
    door = ImageSource(door="10.0.0.1:9", fingerprint="f")
    assert told == [(first.id, (ImageSource(),)), (second.id, (door, ImageSource()))]
    assert nodes.calls[0][1].size_bytes == 1000  # type: ignore[attr-defined]


async def test_nothing_is_asked_for_disks_in_the_shared_pool(api: Api) -> None:
    nodes = Nodes()
    await Distribution(api.records, nodes).bring("n", [disk(A, "")], [])
    assert nodes.calls == []


async def test_a_file_no_image_has_is_not_asked_for(api: Api) -> None:
    nodes = Nodes()
    with pytest.raises(NotFound):
        await Distribution(api.records, nodes).bring("n", [disk(A)], [OTHER])
    assert nodes.calls == []


async def a_pool(api: Api, limit: int, *nodes: Node, shared: bool = False) -> Pool:
    reach = {node.id: Reach(available=True, checked_at=NOW) for node in nodes}
    pool = Pool(
        id=api.records.new_id(), name=f"p-{limit}", driver=PoolDriver.DIRECTORY, created_at=NOW, updated_at=NOW,
        options={"path": "/x"}, shared=shared, image_cache_bytes=limit, reach=reach,
    )  # fmt: skip
    return (await api.records.create(POOLS, pool)).record


async def test_each_node_keeps_its_own_within_the_limit(api: Api) -> None:
    for name, digest in (("one", A), ("two", B), ("three", C)):
        await image_with(api, name, digest)
    one, two, away = [await api.node(f"node-{number}") for number in range(3)]
    pool = await a_pool(api, 1500, one, two, away)
    volume = Volume(
        id=api.records.new_id(),
        name="v",
        pool_id=pool.id,
        size_bytes=1,
        backing_digest=C,
        created_at=NOW,
        updated_at=NOW,
    )
    await api.records.create(VOLUMES, volume)
    nodes = Nodes()
    nodes.held = {one.id: {A, B, C, D}, two.id: {A, C}}
    nodes.away = {away.id}
    distribution = Distribution(api.records, nodes)
    distribution.saw(one.id, pool.id, B)
    distribution.saw(one.id, pool.id, A)
    await Cache(api.records, nodes, HandClock(), distribution).trim()
    assert nodes.held == {one.id: {A, C}, two.id: {A, C}}


async def test_a_shared_pool_is_looked_at_once_and_one_without_a_limit_not_at_all(api: Api) -> None:
    await image_with(api, "one", A)
    one, two = await api.node("node-1"), await api.node("node-2")
    await a_pool(api, 10, one, two, shared=True)
    await a_pool(api, 0, one, two)
    nodes = Nodes()
    nodes.held = {one.id: {A}, two.id: {A}}  # the same files, seen by both
    await Cache(api.records, nodes, HandClock(), Distribution(api.records, nodes)).trim()
    assert [type(verb).__name__ for _, verb in nodes.calls] == ["ImagesHeld", "ImageDrop"]
