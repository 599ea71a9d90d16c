"""Copies kept at a move's source over the API: shown, deleted on request, and every refusal with its reason."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from novacron.control.pools.reach import free_unit, spec_for
from novacron.control.store.kinds import MIGRATIONS, NODES, POOLS, VMS, VOLUMES
from novacron.control.store.records import remove, update
from novacron.model.migration import DiskMove, Migration, MigrationKind, MigrationState, Strategy, judged
from novacron.model.node import Node
from novacron.model.pool import Pool, PoolDriver
from novacron.model.verdict import DISKS, Check, Outcome, Verdict
from novacron.model.volume import Place, Volume
from novacron.wire.moving import DiscardCopies
from novacron.wire.rest import migrations as wire
from tests.control.api import NOW, Api, problem_of

pytestmark = pytest.mark.anyio
EVIDENCE = "volume is not as it was"


class Site:
    """A VM has gone from node-1 to node-2 with a disk, which is another there than here."""

    def __init__(self, api: Api, source: Node, target: Node, migration: Migration) -> None:
        self.api, self.source, self.target, self.migration = api, source, target, migration

    async def discard(self, **headers: str) -> Any:
        path = f"/api/v1/migrations/{self.migration.id}/discard-copies"
        return await self.api.http.post(path, headers=headers)

    async def shown(self) -> wire.Migration:
        answer = await self.api.http.get(f"/api/v1/migrations/{self.migration.id}")
        return wire.Migration.model_validate_json(answer.content)

    async def refused(self, status: int, code: str) -> tuple[str, dict[str, Any]]:
        problem = problem_of(await self.discard(), status, code)
        (reason,) = problem["reasons"]
        assert self.asked() == []
        return reason["code"], reason

    def asked(self) -> list[DiscardCopies]:
        return [one for one in self.api.agents.calls if isinstance(one, DiscardCopies)]


async def a_site(api: Api, **changed: Any) -> Site:
    source, target = await api.node("node-1"), await api.node("node-2")
    pool = Pool(id=api.records.new_id(), name="local", driver=PoolDriver.LVM_THIN, created_at=NOW, updated_at=NOW)
    await api.records.create(POOLS, pool)
    stored = await api.vm(node=target)
    volume = Volume(
        id=api.records.new_id(),
        name="web-1-0",
        pool_id=pool.id,
        size_bytes=1 << 20,
        vm_id=stored.record.id,
        node_id=target.id,
        created_at=NOW,
        updated_at=NOW,
    )
    await api.records.create(VOLUMES, volume)
    move = DiskMove(volume_id=volume.id, size_bytes=1 << 20, from_pool_id=pool.id, to_pool_id=pool.id)
    migration = Migration(
        id=api.records.new_id(),
        vm_id=stored.record.id,
        vm_name="web-1",
        kind=MigrationKind.LIVE,
        strategy=Strategy.PRECOPY,
        source_node=source.id,
        target_node=target.id,
        generation=1,
        state=MigrationState.COMPLETED,
        disks=(move,),
        created_at=NOW,
        updated_at=NOW,
    )
    failed = Check(name=DISKS, outcome=Outcome.FAILED, evidence=EVIDENCE)
    migration = msgspec.structs.replace(judged(migration, Verdict(at=NOW, checks=(failed,))), **changed)
    await api.records.create(MIGRATIONS, migration)
    return Site(api, source, target, migration)


async def test_they_are_shown_and_deleted_at_their_node(api: Api) -> None:
    site = await a_site(api)
    kept = (await site.shown()).kept_copies
    assert kept is not None
    (move,) = site.migration.disks
    assert (kept.node, kept.volume_ids, kept.discarded_at, kept.discarded_by) == (
        "node-1",
        [move.volume_id],
        None,
        None,
    )
    answer = await site.discard(**{"idempotency-key": "once"})
    assert answer.status_code == 200
    (verb,) = site.asked()
    assert [(copy.volume_id, copy.pool.id) for copy in verb.copies] == [(move.volume_id, move.from_pool_id)]
    assert (verb.migration_id, verb.generation) == (site.migration.id, api.records.find(VMS, "web-1").record.generation)
    shown = await site.shown()
    assert shown.kept_copies is not None
    assert shown.kept_copies.discarded_at is not None
    assert shown.kept_copies.discarded_by == "admin"
    assert shown.explanation[-1] == "copies on node-1 deleted at the wish of admin"
    again = await site.discard(**{"idempotency-key": "once"})
    assert (again.status_code, again.json()) == (200, answer.json())
    problem = problem_of(await site.discard(), 409, "state_conflict")
    assert [one["code"] for one in problem["reasons"]] == ["copies.discarded"]
    assert len(site.asked()) == 1


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"verdict": None}, "copies.none"),
        ({"verdict": None, "state": MigrationState.FAILED}, "copies.none"),  # its source has them still, and uses them
        ({"state": MigrationState.VERIFYING}, "copies.in_use"),
    ],
)
async def test_there_must_be_some_that_nobody_uses(api: Api, changed: dict[str, Any], reason: str) -> None:
    site = await a_site(api, **changed)
    assert (await site.refused(409, "state_conflict"))[0] == reason
    problem_of(await api.http.post("/api/v1/migrations/nothing/discard-copies"), 404, "not_found")
    problem_of(await site.discard(**{"if-match": '"1"'}), 412, "precondition_failed")


async def test_what_stayed_of_one_that_failed_past_its_commit_can_go(api: Api) -> None:
    site = await a_site(api, verdict=None, state=MigrationState.FAILED, did=("copy_disks", "commit", "take_over"))
    assert (await site.shown()).kept_copies is not None
    assert (await site.discard()).status_code == 200
    assert len(site.asked()) == 1


@pytest.mark.parametrize("about_to", [True, False])
async def test_a_disk_that_is_there_again_is_no_copy(api: Api, about_to: bool) -> None:
    site = await a_site(api)
    (move,) = site.migration.disks

    def back(volume: Volume) -> Volume:
        if about_to:
            place = Place(pool_id=move.from_pool_id, node_id=site.source.id)
            return msgspec.structs.replace(volume, other=place)
        return msgspec.structs.replace(volume, node_id=site.source.id)

    await api.records.change(VOLUMES, move.volume_id, back)
    code, reason = await site.refused(409, "state_conflict")
    assert code == "copies.in_use"
    assert "web-1-0 moved back, or is about to" in reason["message"]


async def test_its_node_must_be_there(api: Api) -> None:
    site = await a_site(api)
    api.agents.connected.discard(site.source.id)
    assert (await site.refused(503, "node_unreachable"))[0] == "node.away"
    await api.records.commit(remove(NODES, api.records.find(NODES, site.source.id)))
    assert (await site.refused(409, "state_conflict"))[0] == "node.gone"


async def test_copies_of_a_vm_that_is_deleted_can_go_too(api: Api) -> None:
    site = await a_site(api)
    (move,) = site.migration.disks
    for kind, ref in ((VOLUMES, move.volume_id), (VMS, site.migration.vm_id)):
        await api.records.commit(remove(kind, api.records.find(kind, ref)))
    assert (await site.discard()).status_code == 200
    assert site.asked()[0].generation == site.migration.generation + 1


async def test_a_pool_that_is_gone_is_told(api: Api) -> None:
    site = await a_site(api)
    (move,) = site.migration.disks
    await api.records.commit(remove(POOLS, api.records.find(POOLS, move.from_pool_id)))
    assert (await site.refused(409, "state_conflict"))[0] == "pool.gone"


async def test_nobody_gets_the_unit_that_one_lies_in_before_it_is_deleted(api: Api) -> None:
    pool = Pool(
        id=api.records.new_id(), name="luns", driver=PoolDriver.NBD, options={"units": "one,two"}, created_at=NOW,
        updated_at=NOW,
    )  # fmt: skip
    await api.records.create(POOLS, pool)
    site = await a_site(api)
    (move,) = site.migration.disks
    stored = api.records.find(MIGRATIONS, site.migration.id)
    there = msgspec.structs.replace(move, from_pool_id=pool.id, from_unit="one")
    await api.records.commit(update(MIGRATIONS, stored, msgspec.structs.replace(stored.record, disks=(there,))))
    new = api.records.new_id()
    assert free_unit(api.records, pool, new) == "two"
    assert spec_for(api.records, pool).options[f"unit.{move.volume_id}"] == "one"
    assert (await site.discard()).status_code == 200
    assert free_unit(api.records, pool, new) == "one"
    assert f"unit.{move.volume_id}" not in spec_for(api.records, pool).options
