"""What the earlier moves of a VM tell: how much of it is blank, how fast it writes, and when they tell nothing."""

from __future__ import annotations

import datetime

import msgspec
import pytest

from novacron.control.migrations import history, predict
from novacron.control.migrations.habits import DIRTIED_BIAS, Habits, habits, in_use
from novacron.control.migrations.history import MIB, Costs, Link
from novacron.model.migration import Figures, Goals, Migration, MigrationKind, MigrationState, Strategy
from novacron.model.prediction import Measurement, Range

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
RATE = 50.0  # MiB/s


def measured(used_mib: int, dirtied_mib: int) -> Measurement:
    return Measurement(
        at=NOW,
        interval_s=1.0,
        dirtied_bytes=dirtied_mib * MIB,
        memory_used_bytes=used_mib * MIB,
        memory_bytes=512 * MIB,
    )


def moved(used_mib: int, dirtied_mib: int, sent_mib: float, vm_id: str = "v", **more: object) -> Migration:
    sent_s = sent_mib / RATE
    one = Migration(
        id="m",
        vm_id=vm_id,
        vm_name="web",
        kind=MigrationKind.LIVE,
        strategy=Strategy.PRECOPY,
        source_node="a",
        target_node="b",
        generation=1,
        state=MigrationState.COMPLETED,
        created_at=NOW,
        updated_at=NOW,
        measured=measured(used_mib, dirtied_mib),
        figures=Figures(
            total_ms=sent_s * 1e3 + 700,
            transfer_ms=sent_s * 1e3 + 200,
            setup_ms=200.0,
            bytes_transferred=int(sent_mib * MIB),
            rate_bytes_per_s=RATE * MIB,
        ),
    )
    return msgspec.structs.replace(one, **more)


def test_of_a_vm_that_never_moved_what_is_usual_is_assumed() -> None:
    assert habits((), "v") == Habits()
    assert habits([moved(200, 10, 260, vm_id="v", measured=None)], "v") == Habits()


@pytest.mark.parametrize(
    "still", [moved(200, 0, 160), moved(200, 40, 160, kind=MigrationKind.WARM)], ids=["wrote nothing", "stood still"]
)
def test_what_was_held_and_not_sent_is_blank(still: Migration) -> None:
    known = habits([still], "v")
    assert known.blank == 40 * MIB
    assert known.bias == DIRTIED_BIAS
    assert "40 MiB of it are blank" in known.basis
    assert in_use(measured(300, 0), known) == 260 * MIB
    assert in_use(measured(20, 0), known) == 5 * MIB  # what was learnt of a fuller machine does not empty it


def test_moves_that_sent_more_than_memory_tell_how_sampling_reads() -> None:
    """160 MiB to be sent once and 40 more in 4 s: it wrote 10 MiB/s, as sampling had said."""
    known = habits([moved(200, 0, 160), moved(200, 10, 200), moved(200, 10, 200)], "v")
    assert known.bias.expected == pytest.approx(1.0)
    assert known.bias.high == DIRTIED_BIAS.high  # whether it surely ends is not decided by what was lucky
    one = habits([moved(200, 0, 160), moved(200, 10, 200)], "v")
    assert 1.0 < one.bias.expected < DIRTIED_BIAS.expected  # a single move is not believed alone


def test_in_post_copy_it_wrote_here_only_during_the_first_pass() -> None:
    postcopied = moved(160, 10, 192, strategy=Strategy.POSTCOPY)  # 32 MiB in 160 / 50 s
    assert habits([postcopied, postcopied], "v").bias.expected == pytest.approx(1.0)


@pytest.mark.parametrize(
    "untelling",
    [
        moved(100, 10, 400),  # it wrote 37.5 MiB/s of 50: no more could have been seen
        moved(160, 10, 200, goals=Goals(max_slowdown_percent=50)),
        moved(160, 10, 200, kind=MigrationKind.COLD),
        moved(160, 10, 200, figures=Figures()),
        moved(160, 10, 200, figures=msgspec.structs.replace(moved(160, 10, 200).figures, downtime_stopped_ms=900.0)),
    ],
    ids=["as fast as the link", "slowed down", "cold", "without figures", "stood still for a part"],
)
def test_some_moves_do_not_tell(untelling: Migration) -> None:
    assert habits([untelling, untelling], "v").bias == DIRTIED_BIAS


def test_how_sampling_reads_is_taken_from_other_vms_until_its_own_moves_tell() -> None:
    others = [moved(160, 10, 200, vm_id="w")] * 3
    assert habits(others, "v").bias.expected == pytest.approx(1.0)
    assert habits(others, "v").blank == 0
    own = [moved(160, 10, 320, vm_id="v")] * 2  # 25 MiB/s
    assert habits([*others, *own], "v").bias.expected == pytest.approx(2.5)


def test_what_is_learnt_makes_the_next_prediction_right() -> None:
    """The machine of the second test, over the same link: 200 MiB in 4 s, and what it costs beside that."""
    past = history.completed([moved(200, 0, 160), *[moved(200, 10, 200)] * 4])
    link, costs = history.link(past, "a", "b", Goals()), history.costs(past)
    load = predict.load_of(measured(200, 10), 512, runs=True, habits=habits(past, "v"))
    predicted = predict.precopy(load, link, costs, Goals())
    assert predicted.total_ms.expected == pytest.approx(4700, rel=0.05)
    assert predicted.bytes_transferred.expected == pytest.approx(200 * MIB, rel=0.05)
    assert "10.0 MiB/s by sampling" in load.basis
    assert "by earlier moves" in load.basis


def test_what_was_learnt_lets_no_move_begin_that_may_not_end() -> None:
    """Sampled at 30 MiB/s of a link's 50: it may write twice that, whatever its earlier moves were like."""
    past = history.completed([moved(200, 0, 160), *[moved(200, 10, 200)] * 4])
    link = history.link(past, "a", "b", Goals())
    load = predict.load_of(measured(200, 30), 512, runs=True, habits=habits(past, "v"))
    assert load.dirty.expected == pytest.approx(30 * MIB)
    assert not predict.precopy(load, link, Costs(), Goals()).ends
    stopped = predict.precopy(load, link, Costs(), Goals(), pauses=True)
    assert stopped.residue_ms > 1000
    assert predict.hybrid(load, link, Costs(), Goals()).residue_ms < 100
    half = predict.slowed(load, 50)
    assert predict.precopy(half, link, Costs(), Goals()).ends


def test_a_hybrid_is_predicted_with_the_passes_that_get_nowhere_and_what_follows() -> None:
    link = Link(rate=Range(RATE * MIB, RATE * MIB, RATE * MIB), basis="")
    load = predict.Load(
        memory=Range(200.0 * MIB, 200.0 * MIB, 200.0 * MIB), dirty=Range(*[80.0 * MIB] * 3),
        written=Range(*[100.0 * MIB] * 3), basis="",
    )  # fmt: skip
    hot = predict.hybrid(load, link, Costs(), Goals())
    passes_s = 200 / RATE + (predict.FLAT_PASSES + 1) * 100 / RATE
    assert hot.ends
    assert hot.total_ms.expected == pytest.approx(Costs().overhead.expected + passes_s * 1e3 + 100 / RATE * 1e3)
    assert hot.downtime_ms == Costs().postcopy
    calm = msgspec.structs.replace(load, dirty=Range(*[1.0 * MIB] * 3))
    plain = predict.precopy(calm, link, Costs(), Goals())
    assert predict.hybrid(calm, link, Costs(), Goals()).total_ms == plain.total_ms
