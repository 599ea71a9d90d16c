"""When a move goes through the stream proxies: where the link is the bottleneck, or where somebody says so."""

from __future__ import annotations

import datetime
import math

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from novacron.control.migrations import history, predict, transport
from novacron.control.migrations.choice import Choice, Course, Refusal
from novacron.control.migrations.goals import effective, sentences
from novacron.control.migrations.history import MIB, PACKS, Costs, Link
from novacron.control.migrations.transport import BOTTLENECK_BYTES_PER_S, IN_POSTCOPY, Sent, choose, decide, scope_of
from novacron.errors import Reason
from novacron.model.migration import (
    Figures,
    Goals,
    Migration,
    MigrationKind,
    MigrationState,
    Strategy,
    Transport,
    Wishes,
)
from novacron.model.prediction import Measurement, Range
from novacron.model.vm import Desired, Vm, VmSpec

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
A_VM = "01890000-0000-7000-8000-000000000001"


def link(mib_per_s: float) -> Link:
    return Link(rate=Range(mib_per_s * MIB / 2, mib_per_s * MIB, mib_per_s * MIB * 2), basis="seen")


def decided(mib_per_s: float, said: Transport | None = None, lacking: str = "") -> Sent | Reason:
    return decide(effective(Wishes(transport=said), None, {}, ()), link(mib_per_s), PACKS, "node-2", lacking)


def sent(answer: Sent | Reason) -> Sent:
    assert isinstance(answer, Sent), answer
    return answer


def moved(vm_id: str = A_VM, *, cap: int = 0, **figures: object) -> Migration:
    return Migration(
        id="m",
        vm_id=vm_id,
        vm_name="web-1",
        kind=MigrationKind.LIVE,
        strategy=Strategy.PRECOPY,
        source_node="a",
        target_node="b",
        generation=1,
        state=MigrationState.COMPLETED,
        created_at=NOW,
        updated_at=NOW,
        goals=Goals(bandwidth_bytes_per_s=cap),
        figures=Figures(**figures),  # type: ignore[arg-type]
    )


@given(st.floats(0.01, 2000))
def test_by_itself_it_is_taken_exactly_where_the_link_is_the_bottleneck(rate: float) -> None:
    answer = sent(decided(rate))
    slow = rate * MIB < BOTTLENECK_BYTES_PER_S
    assert answer.transport is (Transport.PROXY if slow else Transport.DIRECT)
    assert f"{rate:.1f} MiB/s" in answer.why
    assert sent(decided(rate, lacking="there is none on node-2")).transport is Transport.DIRECT


@given(st.floats(0.01, 2000))
def test_what_is_said_is_kept_to_or_refused(rate: float) -> None:
    assert sent(decided(rate, Transport.PROXY)).transport is Transport.PROXY
    assert sent(decided(rate, Transport.DIRECT)).transport is Transport.DIRECT
    assert sent(decided(rate, Transport.DIRECT)).link == link(rate)
    refused = decided(rate, Transport.PROXY, "there is none on node-2")
    assert isinstance(refused, Reason)
    assert refused.remedy
    assert "asked for" in refused.message


@given(st.floats(0.01, 2000))
def test_through_the_proxies_no_more_is_expected_than_passes_them(rate: float) -> None:
    through = sent(decided(rate, Transport.PROXY)).link
    assert 0 < through.rate.low <= through.rate.expected <= through.rate.high < math.inf
    assert through.rate.expected <= min(transport.PASSES.expected, rate * MIB * PACKS.expected) * 1.001
    assert through.packs == PACKS


def test_a_move_that_takes_them_by_itself_is_never_slower_for_it() -> None:
    measured = Measurement(
        at=NOW, interval_s=1.0, dirtied_bytes=MIB // 4, memory_used_bytes=512 * MIB, memory_bytes=1024 * MIB
    )
    load = predict.load_of(measured, 1024, runs=True)
    for rate in (0.5, 2.0, 10.0, 19.0):
        direct = predict.precopy(load, link(rate), Costs(), Goals())
        packed = predict.precopy(load, sent(decided(rate)).link, Costs(), Goals())
        assert packed.total_ms.expected < direct.total_ms.expected
        assert packed.bytes_transferred.expected < direct.bytes_transferred.expected
        sent_bytes = packed.bytes_transferred
        assert sent_bytes.low < sent_bytes.expected / 2  # a wide bar: what packs is not known before
        assert sent_bytes.high > sent_bytes.expected * 2


def course(mib_per_s: float, dirty_mib_per_s: float = 0.1, **more: object) -> Course:
    measured = Measurement(
        at=NOW, interval_s=1.0, dirtied_bytes=int(dirty_mib_per_s * MIB), memory_used_bytes=128 * MIB,
        memory_bytes=256 * MIB,
    )  # fmt: skip
    load = predict.load_of(measured, 256, runs=True)
    return msgspec.structs.replace(Course(node="node-2", load=load, link=link(mib_per_s), costs=Costs()), **more)


def choice(of: Course, lacking: str = "", **said: object) -> Choice:
    answer = choose(of, effective(Wishes(**said), None, {}, ()), PACKS, lacking)  # type: ignore[arg-type]
    assert isinstance(answer, Choice), answer
    return answer


def test_the_choice_says_how_it_goes_and_a_cold_one_needs_no_stream() -> None:
    live = choice(course(5.0))
    assert live.goals.transport is Transport.PROXY
    assert any("is the bottleneck" in words for words in live.why)
    cold = choice(course(5.0, asked_kind=MigrationKind.COLD), transport=Transport.PROXY)
    assert cold.goals.transport is Transport.DIRECT
    assert not any("stream proxies" in words for words in cold.why)
    refused = choose(course(5.0), effective(Wishes(transport=Transport.PROXY), None, {}, ()), PACKS, "none there")
    assert isinstance(refused, Refusal)
    assert refused.reasons[0].code == "goal.transport"


def test_post_copy_never_goes_through_them() -> None:
    for strategy in (Strategy.POSTCOPY, Strategy.HYBRID):
        both = effective(Wishes(transport=Transport.PROXY), None, {}, ())
        refused = choose(course(5.0, asked_strategy=strategy), both, PACKS, "")
        assert isinstance(refused, Refusal)
        assert IN_POSTCOPY in refused.reasons[0].message
    for chosen in (choice(course(5.0, asked_strategy=Strategy.HYBRID)), choice(course(5.0, dirty_mib_per_s=60))):
        assert chosen.way.strategy is Strategy.HYBRID
        assert chosen.goals.transport is Transport.DIRECT
        assert any(IN_POSTCOPY in words for words in chosen.why)
    slow = choice(course(5.0, dirty_mib_per_s=60), transport=Transport.PROXY, may_pause=True)
    assert slow.way.strategy is Strategy.PRECOPY
    assert slow.goals.transport is Transport.PROXY


def test_a_policy_may_say_it() -> None:
    said = effective(Wishes(transport=Transport.PROXY), None, {}, ())
    assert "goal: transport proxy: asked for" in sentences(said)


def test_a_link_is_known_from_a_stream_of_the_proxies_only_when_it_was_full() -> None:
    packed = {"stream_bytes": 400 * MIB, "bytes_transferred": 40 * MIB, "rate_bytes_per_s": 3.0 * MIB}
    unknown = history.link([moved(**packed)], "a", "b", Goals())
    assert unknown.rate == history.UNKNOWN_LINK
    full = history.link([moved(**packed, link_bytes_per_s=12.0 * MIB)], "a", "b", Goals())
    assert full.rate.expected == 12.0 * MIB
    capped = history.link([moved(**packed, link_bytes_per_s=12.0 * MIB, cap=12 * MIB)], "a", "b", Goals())
    assert capped.rate == history.UNKNOWN_LINK


def test_how_much_is_saved_is_known_from_its_own_moves_first() -> None:
    assert history.packs([], A_VM) == PACKS
    others = [moved("other", stream_bytes=100, bytes_transferred=50)] * 5
    assert history.packs(others, A_VM).expected == 2
    own = [moved(stream_bytes=100, bytes_transferred=10)] * 5
    assert history.packs([*others, *own, moved()], A_VM).expected == 10


def test_pages_are_shared_by_vms_that_say_so_and_no_others() -> None:
    def vm(number: int, **labels: str) -> Vm:
        spec = VmSpec(image_id="", vcpus=1, memory_mib=64)
        vm_id = f"01890000-0000-7000-8000-00000000000{number}"
        return Vm(id=vm_id, name="x", spec=spec, desired=Desired.RUNNING, created_at=NOW, updated_at=NOW, labels=labels)

    scopes = [scope_of(one) for one in (vm(1), vm(2), vm(3, project="a"), vm(4, project="a"), vm(5, project="b"))]
    assert scopes[2] == scopes[3]
    assert len(set(scopes)) == 4
    assert scope_of(vm(6, project=vm(1).id)) != scopes[0]
