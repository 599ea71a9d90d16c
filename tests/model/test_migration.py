"""The migration machine: every plan is replayed interrupted after each write, and always ends where it should."""

from __future__ import annotations

import datetime

import msgspec
import pytest

from novacron.errors import StateConflict
from novacron.model import migration_steps as machine
from novacron.model.migration import DiskMove, Migration, MigrationKind, MigrationState, Strategy, tactics_of
from novacron.model.migration_steps import (
    COMMIT,
    POSTCOPIED,
    REASSIGNED,
    REBOOTED,
    STREAMED,
    Do,
    Finish,
    Undo,
    next_action,
    steps_of,
)
from novacron.model.vm import Problem

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
PROBLEM = Problem(code="x", message="it broke", at=NOW)
LIVE = STREAMED
WAYS = {
    "live": (MigrationKind.LIVE, Strategy.PRECOPY, False, STREAMED),
    "postcopy": (MigrationKind.LIVE, Strategy.POSTCOPY, False, POSTCOPIED),
    "hybrid": (MigrationKind.LIVE, Strategy.HYBRID, False, POSTCOPIED),
    "warm": (MigrationKind.WARM, Strategy.PRECOPY, False, STREAMED),
    "cold": (MigrationKind.COLD, Strategy.PRECOPY, False, REBOOTED),
    "at rest": (MigrationKind.COLD, Strategy.PRECOPY, True, REASSIGNED),
}


def fresh() -> Migration:
    return Migration(
        id="m",
        vm_id="v",
        vm_name="web",
        kind=MigrationKind.LIVE,
        strategy=Strategy.PRECOPY,
        source_node="a",
        target_node="b",
        generation=1,
        state=MigrationState.PENDING,
        created_at=NOW,
        updated_at=NOW,
    )


def run_to_end(migration: Migration) -> tuple[Migration, list[str]]:
    """Follow the machine's own advice; what it did, in order."""
    story: list[str] = []
    for _ in range(50):
        match next_action(migration):
            case None:
                return migration, story
            case Do(step):
                migration = machine.did(machine.began(migration, step, NOW), step, NOW)
                story.append(step.name)
            case Undo(step):
                migration = machine.undid(migration, step, NOW)
                story.append(step.undo)
            case Finish(state):
                migration = machine.finished(migration, state, NOW)
    raise AssertionError(f"no end: {story}")


def after(steps_done: int, *, begun_next: bool) -> Migration:
    migration = fresh()
    for step in LIVE[:steps_done]:
        migration = machine.did(machine.began(migration, step, NOW), step, NOW)
    if begun_next:
        migration = machine.began(migration, LIVE[steps_done], NOW)
    return migration


def fresh_by(way: str) -> tuple[Migration, tuple[machine.Step, ...]]:
    kind, strategy, at_rest, steps = WAYS[way]
    return msgspec.structs.replace(fresh(), kind=kind, strategy=strategy, at_rest=at_rest), steps


@pytest.mark.parametrize("begun_next", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_goes_on_from_any_record_and_can_be_taken_back_before_its_commit(way: str, begun_next: bool) -> None:
    migration, steps = fresh_by(way)
    names = [step.name for step in steps]
    for number, step in enumerate(steps):
        stored = machine.began(migration, step, NOW) if begun_next else migration
        end, story = run_to_end(msgspec.json.decode(msgspec.json.encode(stored), type=Migration))
        assert (end.state, story) == (MigrationState.COMPLETED, names[number:])
        if number <= names.index(COMMIT):
            taken_back, undone = run_to_end(machine.cancelled(stored, NOW))
            begun = [one for one in steps[: number + begun_next] if one.undo]
            assert undone == [one.undo for one in reversed(begun)]
            assert taken_back.state is MigrationState.CANCELLED
        migration = machine.did(machine.began(migration, step, NOW), step, NOW)


def test_what_belongs_to_it_is_copied_just_before_the_hand_over_where_memory_does_not_bring_it() -> None:
    def names(way: str, *, paused: bool = False, disks: bool = False) -> list[str]:
        moves = (DiskMove(volume_id="v", size_bytes=1, from_pool_id="p", to_pool_id="q"),) if disks else ()
        migration = msgspec.structs.replace(fresh_by(way)[0], belongings=True, paused=paused, disks=moves)
        return [step.name for step in steps_of(migration)]

    copied = ["copy_belongings", COMMIT]
    assert names("at rest") == ["accept", *copied, "settle", "release"]
    assert names("at rest", disks=True) == ["accept", "copy_disks", "halt", *copied, "settle", "release"]
    assert names("cold")[1:4] == ["halt", *copied]
    assert names("live", paused=True, disks=True)[1:5] == ["copy_disks", "send", *copied]
    assert names("hybrid", paused=True)[1:5] == ["send", *copied, "open_postcopy"]
    for way in ("live", "warm", "postcopy"):
        assert "copy_belongings" not in names(way)


def test_a_post_copy_that_never_opened_gives_the_ownership_back() -> None:
    migration, steps = fresh_by("hybrid")
    for step in steps[:3]:
        migration = machine.did(machine.began(migration, step, NOW), step, NOW)
    end, story = run_to_end(machine.went_wrong(machine.began(migration, steps[3], NOW), PROBLEM, NOW))
    assert story == ["retake", "reclaim", "discard"]
    assert end.state is MigrationState.ROLLED_BACK


def test_what_a_source_is_told() -> None:
    warm, _ = fresh_by("warm")
    hybrid, _ = fresh_by("hybrid")
    assert tactics_of(warm).stands_still
    assert tactics_of(hybrid).strategy is Strategy.HYBRID
    assert not tactics_of(hybrid).stands_still


def test_the_whole_way() -> None:
    end, story = run_to_end(fresh())
    assert story == ["accept", "send", "commit", "take_over", "verify", "release"]
    assert end.state is MigrationState.COMPLETED
    assert end.figures.total_ms == 0.0


@pytest.mark.parametrize("begun_next", [False, True])
@pytest.mark.parametrize("steps_done", range(len(LIVE)))
def test_interrupted_anywhere_it_goes_on_from_the_record(steps_done: int, begun_next: bool) -> None:
    stored = msgspec.json.decode(msgspec.json.encode(after(steps_done, begun_next=begun_next)), type=Migration)
    end, story = run_to_end(stored)
    assert end.state is MigrationState.COMPLETED
    assert story == [step.name for step in LIVE[steps_done:]]


@pytest.mark.parametrize(
    ("steps_done", "begun_next", "undone"),
    [
        (0, False, []),
        (0, True, ["discard"]),
        (1, False, ["discard"]),
        (1, True, ["reclaim", "discard"]),
        (2, False, ["reclaim", "discard"]),
    ],
)
def test_cancelled_before_the_commit_everything_begun_is_undone_in_reverse(
    steps_done: int, begun_next: bool, undone: list[str]
) -> None:
    end, story = run_to_end(machine.cancelled(after(steps_done, begun_next=begun_next), NOW))
    assert story == undone
    assert end.state is MigrationState.CANCELLED


def test_after_the_commit_no_cancel() -> None:
    with pytest.raises(StateConflict):
        machine.cancelled(after(3, begun_next=True), NOW)
    with pytest.raises(StateConflict):
        machine.cancelled(run_to_end(fresh())[0], NOW)


def test_a_failed_send_rolls_back() -> None:
    end, story = run_to_end(machine.went_wrong(after(1, begun_next=True), PROBLEM, NOW))
    assert story == ["reclaim", "discard"]
    assert end.state is MigrationState.ROLLED_BACK
    assert end.problem == PROBLEM


def test_a_target_that_never_continued_gives_the_ownership_back() -> None:
    wrong = machine.went_wrong(after(3, begun_next=True), PROBLEM, NOW)
    assert machine.is_committed(wrong)
    end, story = run_to_end(wrong)
    assert story == ["discard", "retake", "reclaim", "discard"]
    assert end.state is MigrationState.ROLLED_BACK
    assert not machine.is_committed(end)


def test_once_taken_over_a_person_must_look() -> None:
    end = machine.went_wrong(after(4, begun_next=True), PROBLEM, NOW)
    assert end.state is MigrationState.FAILED
    assert next_action(end) is None


def test_a_failed_undo_is_for_a_person() -> None:
    rolling = machine.went_wrong(after(1, begun_next=True), PROBLEM, NOW)
    assert machine.went_wrong(rolling, PROBLEM, NOW).state is MigrationState.FAILED


def test_states_shown_meanwhile() -> None:
    states = [machine.began(after(n, begun_next=False), LIVE[n], NOW).state.value for n in range(len(LIVE))]
    assert states == ["preparing", "transferring", "switching", "switching", "verifying", "verifying"]
    assert [step.name for step in LIVE if step.side is machine.Side.CONTROL] == [COMMIT]
