"""Events and waiting, over a real WebSocket server that hangs up, forgets and refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from novacron.client import goals
from novacron.errors import (
    DeadlineExceeded,
    InvalidInput,
    MachineDied,
    NotFound,
    NovaCronError,
    StateConflict,
    Unauthenticated,
    Unavailable,
)
from novacron.model.event import ObjectType
from novacron.wire.stream import ErrorFrame, Resync
from tests.client.conftest import Connect, Face
from tests.client.control_room import (
    COMPLETED,
    MIGRATION_ID,
    NOW,
    VM_ID,
    ControlRoom,
    migration,
    refused,
    said,
    vm,
)
from tests.client.served import served

TASK = {"id": "01940000-0000-7000-8000-00000000000a", "kind": "start", "requested_at": NOW}
PROBLEM = {"code": "machine_died", "message": "QEMU ended: no such file", "at": NOW, "remedy": "look at the disk"}


def test_events_come_in_order_and_filtered(room: ControlRoom, client: Face) -> None:
    first = room.happen("vm.created", vm())
    room.happen("node.updated", {"id": "x"})
    second = room.happen("vm.updated", vm(state="stopped"))
    found = client.first_events(2, object_types=[ObjectType.VM], after=first - 1)
    assert [event.seq for event in found] == [first, second]
    assert [event.object["state"] for event in found] == ["running", "stopped"]
    assert room.tokens == ["Bearer secret"]


def test_a_broken_stream_goes_on_where_it_stopped(room: ControlRoom, connect: Connect, address: str) -> None:
    notices: list[str] = []
    seqs = [room.happen("vm.updated", vm(revision=n)) for n in range(10)]
    room.hang_up_after = [3, 0, 2, 4]
    found = connect(address, on_notice=notices.append).first_events(10, after=seqs[0] - 1)
    assert [event.seq for event in found] == seqs
    assert [one.after for one in room.subscribed[:4]] == [seqs[0] - 1, seqs[2], seqs[2], seqs[4]]
    assert len(notices) == 4
    assert "trying again" in notices[0]


def test_what_is_given_twice_is_passed_on_once(room: ControlRoom, client: Face, monkeypatch: Any) -> None:
    seqs = [room.happen("vm.updated", vm(revision=n)) for n in range(4)]
    room.hang_up_after = [2]
    monkeypatch.setattr(room, "_fitting", lambda _wanted, _after: room._log)
    assert [event.seq for event in client.first_events(4, after=1)] == seqs


def test_a_resync_is_passed_on(room: ControlRoom, client: Face) -> None:
    known = room.happen("vm.updated", vm())
    lost = room.happen("vm.updated", vm())
    room.forget()
    kept = room.happen("vm.updated", vm())
    resync, event = client.first_events(2, after=known)
    assert isinstance(resync, Resync)
    assert resync.seq == lost
    assert event.seq == kept


def test_a_refused_stream_is_not_dialled_again(room: ControlRoom, client: Face) -> None:
    room.refuse_streams_with = Unauthenticated("this token is not known")
    with pytest.raises(Unauthenticated, match="this token is not known"):
        client.first_events(1)
    assert len(room.tokens) == 1


def test_a_server_that_was_never_there(room: ControlRoom, client: Face) -> None:
    room.refuse_streams_with = Unavailable("no leader")
    with pytest.raises(Unavailable, match="no leader"):
        client.first_events(1)


def test_a_stream_that_was_closed_for_being_slow_is_dialled_again(room: ControlRoom, client: Face) -> None:
    seqs = [room.happen("vm.updated", vm(revision=n)) for n in range(4)]
    room.hang_up_after = [2]
    room.farewell = ErrorFrame(code="unavailable", message="too slow")
    assert [event.seq for event in client.first_events(4, after=1)] == seqs


def test_a_stream_that_was_closed_for_a_fault_of_ours_is_not(room: ControlRoom, client: Face) -> None:
    room.hang_up_after = [0]
    room.farewell = ErrorFrame(code="invalid_input", message="the first frame must be a subscribe")
    with pytest.raises(InvalidInput, match="must be a subscribe"):
        client.first_events(1, after=1)
    assert len(room.tokens) == 1


# -- waiting -----------------------------------------------------------------------------------------------


def later(room: ControlRoom, *changes: tuple[str, dict[str, Any]], streams: int = 1) -> threading.Thread:
    """Let these things happen once so many streams have been opened."""

    def happen() -> None:
        waited = threading.Event()
        while len(room.subscribed) < streams:
            waited.wait(0.01)
        for type_, data in changes:
            room.happen(type_, data)

    thread = threading.Thread(target=happen, daemon=True)
    thread.start()
    return thread


def test_waiting_reads_once_when_it_is_so_already(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm()))
    assert client.wait_vm("web-1", "running").state == "running"
    assert room.subscribed == []


def test_waiting_hears_of_the_change(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm(state="starting", task=TASK)))
    room.on("GET", f"/vms/{VM_ID}", said(vm(state="starting", task=TASK)))
    seen: list[str] = []
    thread = later(room, ("vm.updated", vm(state="starting", revision=11)), ("vm.updated", vm(revision=12)))
    found = client.wait_vm("web-1", "running", on_update=lambda one: seen.append(one.state))
    thread.join()
    assert found.revision == 12
    assert seen == ["starting", "starting", "starting", "running"]
    assert room.subscribed[0].ids == (VM_ID,)
    assert len(room.asked) == 2


def test_a_change_between_reading_and_listening_is_seen(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm(state="starting", task=TASK)))
    room.on("GET", f"/vms/{VM_ID}", said(vm(revision=11)))
    assert client.wait_vm("web-1", "running").revision == 11


def test_waiting_goes_on_through_a_broken_line(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm(state="starting", task=TASK)))
    room.on("GET", f"/vms/{VM_ID}", said(vm(state="starting", task=TASK)))
    room.hang_up_after = [1, 0, 1]
    thread = later(room, ("vm.updated", vm(revision=12)), streams=4)
    assert client.wait_vm("web-1", "running").revision == 12
    thread.join()


def test_after_a_resync_it_reads_again(room: ControlRoom, client: Face) -> None:
    before, after = said(vm(state="starting", task=TASK)), said(vm(revision=20))
    room.on("GET", "/vms/web-1", before)
    room.on("GET", f"/vms/{VM_ID}", before, after)
    room.happen("vm.updated", vm(state="starting", revision=9))
    room.hang_up_after = [1]  # after Ready

    def forget() -> None:
        waited = threading.Event()
        while not room.subscribed:
            waited.wait(0.005)
        room.happen("vm.updated", vm(revision=20))
        room.forget()

    thread = threading.Thread(target=forget, daemon=True)
    thread.start()
    assert client.wait_vm("web-1", "running").revision == 20
    thread.join()


def test_an_older_state_heard_late_changes_nothing(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm(state="stopping", desired="stopped", task=TASK, revision=15)))
    room.on("GET", f"/vms/{VM_ID}", said(vm(state="stopping", desired="stopped", task=TASK, revision=15)))
    thread = later(
        room,
        ("vm.updated", vm(state="stopped", desired="stopped", revision=14)),
        ("vm.updated", vm(state="stopped", desired="stopped", revision=16)),
    )
    assert client.wait_vm("web-1", goals.vm_settles("stopped")).revision == 16
    thread.join()


def test_a_restart_is_not_done_while_the_old_run_still_runs(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm(task=TASK | {"kind": "restart"})))
    room.on("GET", f"/vms/{VM_ID}", said(vm(task=TASK | {"kind": "restart"})))
    thread = later(room, ("vm.updated", vm(state="starting", task=TASK, revision=11)), ("vm.updated", vm(revision=12)))
    assert client.wait_vm("web-1", goals.vm_settles("running")).revision == 12
    thread.join()


def test_a_vm_that_ends_in_error_ends_the_waiting(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm(state="starting", task=TASK)))
    room.on("GET", f"/vms/{VM_ID}", said(vm(state="starting", task=TASK)))
    thread = later(room, ("vm.updated", vm(state="error", problem=PROBLEM, revision=12)))
    with pytest.raises(MachineDied, match="web-1: QEMU ended: no such file") as caught:
        client.wait_vm("web-1", "running")
    assert caught.value.reasons[0].remedy == "look at the disk"
    thread.join()


def test_a_wish_that_changed_ends_the_waiting(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm(state="stopped", desired="stopped")))
    with pytest.raises(StateConflict, match="it is wanted stopped now"):
        client.wait_vm("web-1", goals.vm_settles("running"))


def test_what_was_refused_ends_the_waiting_with_the_reason(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm(task=TASK | {"kind": "park"})))
    room.on("GET", f"/vms/{VM_ID}", said(vm(task=TASK | {"kind": "park"})))
    thread = later(room, ("vm.updated", vm(problem=PROBLEM | {"refused": True}, revision=12)))
    with pytest.raises(MachineDied, match="web-1: QEMU ended: no such file") as caught:
        client.wait_vm("web-1", goals.vm_settles("parked"))
    assert caught.value.reasons[0].remedy == "look at the disk"
    thread.join()


def test_the_deadline_says_what_is(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm(state="starting", task=TASK)))
    room.on("GET", f"/vms/{VM_ID}", said(vm(state="starting", task=TASK)))
    with pytest.raises(DeadlineExceeded, match=r"web-1 is not running after 0.3 s; it is starting"):
        client.wait_vm("web-1", "running", deadline_s=0.3)


def test_gone_is_heard_as_an_event(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm(state="deleting", desired="deleted")))
    room.on("GET", f"/vms/{VM_ID}", said(vm(state="deleting", desired="deleted")))
    thread = later(room, ("vm.deleted", vm(state="deleting")))
    client.wait_vm_gone("web-1")
    thread.join()


def test_gone_already(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", refused(NotFound("no VM web-1")))
    client.wait_vm_gone("web-1")
    with pytest.raises(NotFound, match="no VM web-1"):
        client.wait_vm("web-1", "running")


def test_deleted_while_waited_for(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm(state="starting", task=TASK)))
    room.on("GET", f"/vms/{VM_ID}", said(vm(state="starting", task=TASK)))
    thread = later(room, ("vm.deleted", vm()))
    with pytest.raises(NotFound, match="was deleted meanwhile"):
        client.wait_vm("web-1", "running")
    thread.join()


def test_a_deletion_that_fails_ends_the_waiting(room: ControlRoom, client: Face) -> None:
    room.on("GET", "/vms/web-1", said(vm(state="deleting", desired="deleted", problem=PROBLEM)))
    with pytest.raises(NovaCronError, match="no such file"):
        client.wait_vm_gone("web-1")


def test_a_migration_is_watched_to_its_end(room: ControlRoom, client: Face) -> None:
    room.on("GET", f"/migrations/{MIGRATION_ID}", said(migration()))
    states: list[str] = []
    thread = later(
        room,
        ("migration.updated", migration(state="switching", revision=41)),
        ("migration.updated", migration(**COMPLETED, revision=42)),
    )
    ended = client.wait_migration(MIGRATION_ID, on_update=lambda one: states.append(one.state))
    thread.join()
    assert ended.figures.downtime_qemu_ms == 12.0
    assert states == ["transferring", "transferring", "switching", "completed"]


def test_waiting_outlives_a_server_that_is_started_again(room: ControlRoom, connect: Connect) -> None:
    starting = said(vm(state="starting", task=TASK))
    room.on("GET", "/vms/web-1", starting)
    room.on("GET", f"/vms/{VM_ID}", starting)
    notices: list[str] = []
    found: list[Any] = []
    with served(room.app) as address:
        port = int(address.rpartition(":")[2])
        client = connect(address, on_notice=notices.append)
        waiting = threading.Thread(target=lambda: found.append(client.wait_vm("web-1", "running")), daemon=True)
        waiting.start()
        until(lambda: bool(room.subscribed))
    until(lambda: any("cannot reach the server" in notice for notice in notices))
    room.on("GET", f"/vms/{VM_ID}", said(vm(revision=30)))
    with served(room.app, port=port):
        waiting.join(20)
    assert [one.revision for one in found] == [30]
    assert room.subscribed[-1].after == 1000


def until(holds: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(2000):
        if holds():
            return
        waited.wait(0.01)
    raise AssertionError("it did not come")
