"""What a migration that waits keeps of its request, and what becomes of it when it cannot begin: pure."""

from __future__ import annotations

import datetime

import msgspec
import pytest

from novacron.control.migrations.queue import Slots, admitted
from novacron.control.migrations.waiting import body_of, came_free, decided_anew, first_of, refused, request_of, waiting
from novacron.errors import (
    Busy,
    CompareFailed,
    GoalsUnmet,
    InvalidInput,
    NodeUnreachable,
    NoRoom,
    NovaCronError,
    Reason,
    StateConflict,
    Unsupported,
)
from novacron.model.bulk_migration import PATIENCE_S
from novacron.model.migration import (
    DiskMove,
    Migration,
    MigrationKind,
    MigrationState,
    Request,
    Strategy,
    Transport,
    VerifyDisks,
    paced,
    waits,
)
from novacron.model.migration_steps import cancelled
from novacron.model.vm import Desired, Task, TaskKind, Vm, VmSpec
from novacron.wire.rest.migrations import MigrationCreate

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
LATER = NOW + datetime.timedelta(seconds=PATIENCE_S)
VM = Vm(id="v", name="web-1", spec=VmSpec(image_id="i"), desired=Desired.RUNNING, created_at=NOW, updated_at=NOW)
SAID = MigrationCreate(
    vm="web-1",
    target_node="node-2",
    kind=MigrationKind.LIVE,
    strategy=Strategy.PRECOPY,
    policy="nightly",
    pool="fast",
    disk_pools={"data": "slow"},
    measure=False,
    starts_at=NOW.astimezone(datetime.timezone(datetime.timedelta(hours=9))),
    now=True,
    priority=7,
    labels={"why": "test"},
    max_downtime_ms=50,
    finish_within_s=60.0,
    max_slowdown_percent=20,
    bandwidth_bytes_per_s=1 << 20,
    may_pause=True,
    never_postcopy=False,
    transport=Transport.DIRECT,
    verify_disks=VerifyDisks.FULL,
)


def wish(**more: object) -> Migration:
    made = {
        "id": "m", "vm_id": "v", "vm_name": "web-1", "kind": MigrationKind.LIVE, "strategy": Strategy.PRECOPY,
        "source_node": "a", "target_node": "b", "generation": 1, "state": MigrationState.PENDING, "created_at": NOW,
        "updated_at": NOW, "not_before": NOW, "holds": False, "request": Request(), "explanation": ("waits until …",),
    }  # fmt: skip
    return Migration(**made | more)  # type: ignore[arg-type]


def test_a_request_is_kept_whole_and_by_ids() -> None:
    assert SAID.model_fields_set == set(MigrationCreate.model_fields)  # nothing that can be said is left out here
    kept = request_of(SAID, lambda field, ref: f"id-of-{field[:4]}-{ref}")
    kept = msgspec.json.decode(msgspec.json.encode(kept), type=Request)
    again = body_of(wish(request=kept, priority=7, labels={"why": "test"}))
    renamed = {
        "vm": "v", "target_node": "id-of-targ-node-2", "policy": "id-of-poli-nightly",
        "pool": "id-of-pool-fast", "disk_pools": {"id-of-volu-data": "id-of-pool-slow"},
    }  # fmt: skip
    assert again.model_dump() == SAID.model_dump() | renamed


def test_what_was_not_said_is_not_said_later() -> None:
    kept = request_of(MigrationCreate(vm="web-1"), lambda _, ref: ref)
    assert kept == Request()
    assert body_of(wish(request=kept)) == MigrationCreate(vm="v", priority=50)


def test_a_wish_keeps_no_unit() -> None:
    move = DiskMove(volume_id="d", size_bytes=1, from_pool_id="p", to_pool_id="q", from_unit="1", to_unit="2")
    made = waiting(wish(holds=True, request=None, disks=(move,)), Request(kind=MigrationKind.LIVE))
    assert (made.holds, made.request) == (False, Request(kind=MigrationKind.LIVE))
    assert [(one.from_unit, one.to_unit) for one in made.disks] == [("1", "")]


def test_what_changed_since_it_was_asked_for_is_said() -> None:
    later = NOW + datetime.timedelta(hours=2)
    fresh = wish(
        holds=True, kind=MigrationKind.COLD, at_rest=True, source_node="c", target_node="d", created_at=later,
        not_before=None, request=None, explanation=("target d: chosen",),
    )  # fmt: skip
    made = decided_anew(wish(paced_by="ops"), fresh, str.upper)
    changes = "it is on C, it was on A; target D, it was B; at rest, it was live, precopy"
    told = f"its time came, and it was decided anew at 2026-01-02 05:04 UTC: {changes}"
    assert made.explanation == (told, "target d: chosen")
    assert (made.created_at, made.not_before, made.request, made.paced_by) == (NOW, NOW, Request(), "ops")
    same = decided_anew(wish(), wish(holds=True, created_at=later), str)
    assert same.explanation[0].endswith("as when it was asked for")


FOR_GOOD = (GoalsUnmet("too slow"), InvalidInput.field("target_node", "web-1 is there already"), Unsupported("no"))
PASSING = (NodeUnreachable("cut"), CompareFailed("others"), Busy("cannot migrate web-1: its task stop is under way"))
FOR_NOW = (NoRoom("full"), StateConflict("it is stopped"))


@pytest.mark.parametrize("error", FOR_GOOD, ids=lambda error: error.code)
def test_what_can_never_be_ends_it_with_what_to_type(error: NovaCronError) -> None:
    ended = refused(wish(), error, VM, NOW)
    assert ended is not None
    assert (ended.state, ended.finished_at, ended.holds) == (MigrationState.FAILED, NOW, False)
    assert ended.problem is not None
    assert ended.problem.code == error.code
    assert error.message in ended.problem.message
    assert "novacron vm migrate web-1 --dry-run" in ended.problem.remedy


@pytest.mark.parametrize("error", [*PASSING, *FOR_NOW], ids=lambda error: error.code)
def test_what_may_pass_is_waited_for_and_written_once(error: NovaCronError) -> None:
    told = refused(wish(), error, VM, NOW)
    assert told is not None
    assert waits(told)
    assert told.held_up is not None
    assert (told.held_up.code, told.held_up.message, told.held_up.at) == (error.code, error.message, NOW)
    soon = NOW + datetime.timedelta(seconds=30)
    assert refused(told, error, VM, soon) is None
    other = refused(told, type(error)("another reason", [Reason("x", "x", remedy="do x")]), VM, soon)
    assert other is not None
    assert other.held_up is not None
    assert (other.held_up.message, other.held_up.remedy, other.held_up.at) == ("another reason", "do x", NOW)
    at_last = refused(told, error, VM, LATER)
    assert (at_last is not None and at_last.state is MigrationState.FAILED) is (error in FOR_NOW)


def test_patience_for_one_thing_begins_when_another_has_passed() -> None:
    busy = refused(wish(), PASSING[2], VM, NOW)
    assert busy is not None
    full = refused(busy, FOR_NOW[0], VM, LATER)
    assert full is not None
    assert full.held_up is not None
    assert (full.state, full.held_up.at) == (MigrationState.PENDING, LATER)


@pytest.mark.parametrize("vm", [None, msgspec.structs.replace(VM, desired=Desired.DELETED)], ids=["gone", "going"])
def test_one_whose_vm_is_deleted_ends_whatever_it_met(vm: Vm | None) -> None:
    ended = refused(wish(), PASSING[2], vm, NOW)
    assert ended is not None
    assert ended.problem is not None
    assert (ended.state, ended.problem.code) == (MigrationState.FAILED, "vm.gone")


@pytest.mark.parametrize("more", [{"holds": True}, {"state": MigrationState.CANCELLED}])
def test_one_that_waits_no_more_is_left_as_it_is(more: dict[str, object]) -> None:
    assert refused(wish(**more), FOR_GOOD[0], VM, NOW) is None
    assert refused(wish(**more), FOR_GOOD[0], None, NOW) is None
    assert first_of([wish(**more)]) is None
    assert first_of([wish(**more), wish(id="n")]) == wish(id="n")


def test_cancelling_a_wish_ends_it_and_one_that_holds_is_taken_back() -> None:
    assert cancelled(wish(), NOW).state is MigrationState.CANCELLED
    assert cancelled(wish(), NOW).finished_at == NOW
    assert cancelled(wish(holds=True), NOW).state is MigrationState.CANCELLING


def test_a_bandwidth_that_is_changed_while_it_waits_counts_when_it_begins() -> None:
    slower = paced(wish(request=Request(never_postcopy=True)), 5 << 20, "ops", NOW)
    assert slower.request == Request(never_postcopy=True, bandwidth_bytes_per_s=5 << 20)
    assert paced(wish(holds=True, request=None), 5 << 20, "ops", NOW).request is None


def test_one_that_was_put_aside_takes_no_slot_and_is_looked_at_then() -> None:
    line = [wish(priority=90), wish(id="next", vm_id="w")]
    soon = NOW + datetime.timedelta(seconds=15)
    assert admitted(line, (), NOW, Slots(1)).ids == ("m",)
    found = admitted(line, (), NOW, Slots(1), {"m": soon})
    assert (found.ids, found.next_at) == (("next",), soon)
    assert admitted(line, ("next",), soon, Slots(1), {"m": soon}).ids == ()
    assert admitted(line[:1], (), soon, Slots(1), {"m": soon}).ids == ("m",)


def test_only_a_change_that_may_let_it_begin_is_one() -> None:
    task = Task(id="t", kind=TaskKind.STOP, requested_at=NOW)
    busy = msgspec.structs.replace(VM, task=task)
    assert came_free(busy, VM)
    assert came_free(None, VM)
    assert came_free(msgspec.structs.replace(VM, migration_id="x"), VM)
    assert not came_free(VM, msgspec.structs.replace(VM, description="other", updated_at=LATER))
    assert not came_free(busy, msgspec.structs.replace(busy, task=msgspec.structs.replace(task, halted=True)))
