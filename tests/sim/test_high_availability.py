"""A node falls silent: what is guarded ends there and runs elsewhere, never twice; what is not is left alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.agent.guard import AT_DEADLINE, BEFORE_JOIN
from novacron.control.fencing.device import opener
from novacron.control.fencing.seal import Seal
from novacron.control.fencing.service import FencingService
from novacron.control.once import Once
from novacron.control.store.kinds import FENCE_DEVICES, FENCES, MEMBERS, MIGRATIONS, NODES, VMS
from novacron.control.store.records import Write, update
from novacron.errors import InvalidInput, StateConflict, Unavailable
from novacron.model import membership
from novacron.model.fence_device import FenceDevice, FenceDeviceKind, Power
from novacron.model.ha import FenceClass, HaPolicy, Proof, Protection
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.membership import Membership, MemberState
from novacron.model.migration import MigrationState, is_final
from novacron.model.node import NodeState
from novacron.model.timing import STANDARD
from novacron.model.vm import TaskKind, VmState
from novacron.testing.fake_driver import FakeDriver
from novacron.testing.fake_world import TIMED_OUT
from novacron.wire import agent as wire
from tests.sim.house import House, house

pytestmark = pytest.mark.anyio

GUARDED = Protection(policy=HaPolicy.RESTART, min_class=FenceClass.AGENT)
TIMED = Protection(policy=HaPolicy.RESTART, min_class=FenceClass.TIMER)
SURER = Protection(policy=HaPolicy.RESTART, min_class=FenceClass.WATCHDOG)


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "name", "qemu")  # the one VMs are placed by


def member(h: House, name: str) -> Membership:
    return h.records.find(MEMBERS, h.cluster[name].node_id).record


def node_state(h: House, name: str) -> NodeState:
    return h.records.find(NODES, h.cluster[name].node_id).record.state


async def test_a_vm_of_a_node_that_was_cut_off_ends_there_and_runs_elsewhere(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", ha=GUARDED)
        before = member(h, "a")
        await h.cluster.disconnect("a")
        cut_s = h.clock.monotonic_s()
        await h.until(lambda: node_state(h, "a") is NodeState.SUSPECT, "suspect")
        await h.until(lambda: node_state(h, "a") is NodeState.FENCING, "fencing")
        await h.until(lambda: h.cluster.world.running(vm_id) == [], "ended at its deadline")
        assert h.cluster["a"].host.machines[vm_id].report.reason in (AT_DEADLINE, TIMED_OUT)
        assert h.vm(vm_id).node_id == h.cluster["a"].node_id
        await _runs_on(h, vm_id, "b")
        assert h.clock.monotonic_s() - cut_s < 40
        await h.until(lambda: node_state(h, "a") is NodeState.FENCED, "fenced")
        assert "no heartbeat" in h.records.find(NODES, h.cluster["a"].node_id).record.state_reason
        log = h.records.get(FENCES, "fences")
        assert log is not None
        (fence,) = log.record.recent
        assert (fence.node_id, fence.epoch) == (before.id, before.epoch)
        await h.cluster.connect("a")
        await h.until(lambda: node_state(h, "a") is NodeState.UP, "back")
        assert member(h, "a").epoch > before.epoch + 2
        assert await h.check_peace(vm_id) == "b"


async def test_a_vm_of_a_node_that_lost_power_runs_elsewhere(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", ha=GUARDED)
        await h.cluster.kill("a")
        h.cluster["a"].host.reboot()
        await _runs_on(h, vm_id, "b")
        await h.cluster.boot("a")
        await h.until(lambda: node_state(h, "a") is NodeState.UP, "back")
        assert await h.check_peace(vm_id) == "b"


async def test_a_fence_is_no_look_late_for_the_vms_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novacron.control.ha.rescuer.LOOK_S", 1e9)
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", ha=GUARDED)
        await h.cluster.kill("a")
        h.cluster["a"].host.reboot()
        await _runs_on(h, vm_id, "b")


async def test_several_are_taken_over_together_and_one_that_changes_meanwhile_holds_up_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        vm_ids = [await h.running_vm("a", ha=GUARDED) for _ in range(4)]
        commit, together = h.records.commit, list[int]()

        async def changed_meanwhile(*writes: Write, **more: Any) -> int:
            ours = [op.key for write in writes for op in write.ops if op.key.startswith(VMS.prefix)]
            if len(ours) > 1:
                together.append(len(ours))
            if together == [len(ours)]:  # another server writes, and this one has not seen it yet
                stored = h.records.find(VMS, vm_ids[2])
                await commit(update(VMS, stored, msgspec.structs.replace(stored.record, description="changed")))
            return await commit(*writes, **more)

        monkeypatch.setattr(h.records, "commit", changed_meanwhile)
        await h.cluster.kill("a")
        h.cluster["a"].host.reboot()
        for vm_id in vm_ids:
            await _runs_on(h, vm_id, "b")
        assert together == [4]  # in vain, and then one by one
        assert [h.vm(vm_id).description for vm_id in vm_ids] == ["", "", "changed", ""]
        assert {h.vm(vm_id).generation for vm_id in vm_ids} == {2}


async def test_a_node_that_ends_its_machines_and_says_so_is_not_waited_for(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", ha=SURER)  # no class of the node would vouch for it: its word does
        before, told_s = member(h, "a"), h.clock.monotonic_s()
        assert await h.cluster["a"].leave()
        assert h.cluster.world.running(vm_id) == []
        after = member(h, "a")
        assert (after.state, after.epoch, after.proof) == (MemberState.FENCED, before.epoch + 1, Proof.AGENT)
        await _runs_on(h, vm_id, "b")
        assert h.clock.monotonic_s() - told_s < 5
        with pytest.raises(Unavailable):  # an order that was long on its way
            h.cluster["a"].member.check(vm_id, 99, before.epoch, 0)
        await h.cluster.kill("a")
        await h.cluster.boot("a")
        await h.until(lambda: node_state(h, "a") is NodeState.UP, "back")
        assert await h.check_peace(vm_id) == "b"


async def test_a_node_that_was_barred_meanwhile_still_counts_when_it_says_that_nothing_runs(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", ha=GUARDED)
        stored = h.records.find(MEMBERS, h.cluster["a"].node_id)
        barred = membership.barred(stored.record, stored.record, "for a test")
        assert barred is not None
        await h.records.commit(update(MEMBERS, stored, barred))
        assert await h.cluster["a"].leave()
        assert member(h, "a").proof is Proof.AGENT
        await _runs_on(h, vm_id, "b")


async def test_what_has_no_policy_or_asks_for_more_than_its_node_vouches_for_is_left_alone(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        plain, sure = await h.running_vm("a"), await h.running_vm("a", ha=SURER)
        await h.cluster.disconnect("a")
        await h.until(lambda: node_state(h, "a") is NodeState.DOWN, "down")
        await h.clock.advance(60)
        assert member(h, "a").state is MemberState.UP
        assert [h.cluster.world.running(vm_id) for vm_id in (plain, sure)] == [["a"], ["a"]]
        await h.cluster.connect("a")
        await h.until(lambda: h.state(plain) is h.state(sure) is VmState.RUNNING, "seen again")


async def test_beside_one_that_is_restarted_the_others_say_why_they_are_not(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        guarded, sure = await h.running_vm("a", ha=GUARDED), await h.running_vm("a", ha=SURER)
        await h.cluster.disconnect("a")
        await _runs_on(h, guarded, "b")
        await h.until(lambda: h.vm(sure).problem is not None, "told")
        problem = h.vm(sure).problem
        assert problem is not None
        assert problem.code == "ha.cannot_guarantee"
        assert h.cluster.world.running(sure) == ["a"]
        await h.cluster.connect("a")
        await h.until(lambda: h.vm(sure).problem is None and h.state(sure) is VmState.RUNNING, "nothing to say")


async def test_a_vm_whose_disk_is_on_its_node_alone_waits_for_it_and_says_so(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", local=True, ha=GUARDED)
        await h.cluster.disconnect("a")
        await h.until(lambda: h.vm(vm_id).problem is not None, "told")
        problem = h.vm(vm_id).problem
        assert problem is not None
        assert problem.code == "ha.nowhere"
        await h.cluster.connect("a")
        assert await h.check_peace(vm_id) == "a"
        assert h.vm(vm_id).problem is None


async def test_a_node_back_in_time_lifts_the_bar_and_its_vm_never_notices(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", ha=GUARDED)
        pid, epoch = h.cluster["a"].host.machines[vm_id].report.pid, member(h, "a").epoch
        await h.cluster.disconnect("a")
        await h.until(lambda: member(h, "a").state is MemberState.FENCING, "barred")
        await h.cluster.connect("a")
        await h.until(lambda: member(h, "a").state is MemberState.UP, "joined")
        await h.clock.advance(STANDARD.ttl_s)
        assert member(h, "a").epoch > epoch
        assert h.cluster["a"].host.machines[vm_id].report.pid == pid
        assert await h.check_peace(vm_id) == "a"


async def test_nodes_that_fall_silent_together_are_not_fenced(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc") as h:
        await h.running_vm("a", ha=GUARDED)
        await h.running_vm("b", ha=GUARDED)
        await h.cluster.disconnect("a")
        await h.cluster.disconnect("b")
        await h.until(lambda: node_state(h, "a") is node_state(h, "b") is NodeState.SUSPECT, "suspect")
        await h.until(lambda: "together" in h.records.find(NODES, h.cluster["a"].node_id).record.state_reason, "said")
        await h.clock.advance(60)
        assert [member(h, name).state for name in "ab"] == [MemberState.UP, MemberState.UP]


async def test_a_dead_agents_machine_is_ended_by_its_timer_before_it_runs_elsewhere(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", ha=TIMED)
        await h.cluster.kill("a")
        await h.until(lambda: h.cluster.world.running(vm_id) == [], "ended at its deadline")
        assert h.cluster["a"].host.machines[vm_id].report.reason == TIMED_OUT
        assert h.vm(vm_id).node_id == h.cluster["a"].node_id
        await _runs_on(h, vm_id, "b")


async def test_an_agent_that_starts_anew_goes_on_with_its_timers(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", ha=TIMED)
        for _ in range(3):
            await h.cluster.kill("a")
            await h.clock.advance(STANDARD.suspect_s / 2)
            await h.cluster.boot("a")
            await h.until(lambda: node_state(h, "a") is NodeState.UP, "up")
            await h.clock.advance(STANDARD.heartbeat_s * 2)
        assert member(h, "a").fence_class is FenceClass.TIMER
        await h.clock.advance(STANDARD.ttl_s)
        assert await h.check_peace(vm_id) == "a"


async def test_an_agent_that_starts_anew_and_reaches_nobody_gives_its_machines_no_time(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", ha=TIMED)
        await h.cluster.kill("a")
        deadline_s = h.cluster["a"].host.machines[vm_id].deadline_s
        await h.clock.advance(STANDARD.suspect_s)
        await h.cluster["a"].boot()
        await h.until(lambda: h.cluster.world.running(vm_id) == [], "ended")
        assert h.clock.monotonic_s() < deadline_s + 1
        await _runs_on(h, vm_id, "b")


async def test_a_node_that_vouches_for_less_says_so_in_a_new_epoch_and_its_machines_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", ha=GUARDED)
        before = member(h, "a")
        assert before.fence_class is FenceClass.TIMER
        monkeypatch.setattr(h.cluster["a"].guard, "_without", FenceClass.AGENT)
        await h.until(lambda: member(h, "a").epoch > before.epoch, "joined anew")
        assert member(h, "a").fence_class is FenceClass.AGENT
        await h.clock.advance(STANDARD.ttl_s * 2)
        assert (member(h, "a").epoch, member(h, "a").state) == (before.epoch + 1, MemberState.UP)
        assert await h.check_peace(vm_id) == "a"


async def test_a_node_that_returns_ends_what_is_left_before_it_joins(tmp_path: Path) -> None:
    """Its agent was dead over its deadline, and with the class `agent` nobody ended its machine for it."""
    async with house(tmp_path) as h:
        h.cluster["a"].fence_class = FenceClass.AGENT
        await h.cluster.kill("a")
        await h.cluster.boot("a")
        vm_id = await h.running_vm("a", ha=GUARDED)
        await h.cluster.kill("a")
        await h.until(lambda: h.vm(vm_id).node_id == h.cluster["b"].node_id, "taken over")
        h.cluster.world.violations.clear()  # what this class does not vouch for: its agent must live to end it
        await h.cluster.boot("a")
        await h.until(lambda: member(h, "a").state is MemberState.UP, "joined")
        left = h.cluster["a"].host.machines.get(vm_id)
        assert left is None or (left.report.status, left.report.reason) == (MachineStatus.CRASHED, BEFORE_JOIN)
        h.cluster.world.violations.clear()
        assert await h.check_peace(vm_id) == "b"


async def test_a_fenced_target_after_the_hand_over_gives_the_vm_back_by_a_start(tmp_path: Path) -> None:
    async with house(tmp_path, transfer_s=2.0) as h:
        vm_id = await h.running_vm("a", ha=GUARDED)
        h.cluster["b"].lose("migration.take_over", times=1000)
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: h.vm(vm_id).generation == 2, "handed over")
        await h.cluster.disconnect("b")
        await h.until(lambda: h.vm(vm_id).node_id == h.cluster["a"].node_id, "taken over")
        assert h.migration(migration_id).state is MigrationState.FAILED
        await _runs_on(h, vm_id, "a")
        await h.cluster.connect("b")
        assert await h.check_peace(vm_id) == "a"


async def test_one_that_crashes_is_started_again_ever_more_seldom(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", ha=GUARDED)
        waits = []
        for _ in range(3):
            h.cluster["a"].host.crash(vm_id)
            since_s = h.clock.monotonic_s()
            await h.until(lambda: h.state(vm_id) is not VmState.RUNNING, "seen to have ended")
            await h.until(lambda: h.state(vm_id) is VmState.RUNNING and h.vm(vm_id).task is None, "it runs again")
            waits.append(h.clock.monotonic_s() - since_s)
        assert waits[0] < 5 < waits[1] < waits[2]


async def test_the_hand_over_stops_at_a_migration_that_was_ended(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        await h.kill_worker("conductor")
        migration_id = await h.migrate(vm_id, "b")
        ended = msgspec.structs.replace(h.migration(migration_id), state=MigrationState.FAILED)
        await h.records.change(MIGRATIONS, migration_id, lambda _: ended)
        before = h.vm(vm_id)
        await h.journal.hand_over(migration_id, None)
        assert h.vm(vm_id) == before
        assert h.migration(migration_id) == ended


@pytest.mark.parametrize("back", [False, True])
async def test_a_target_that_is_silent_is_handed_nothing_and_the_guest_goes_on(tmp_path: Path, *, back: bool) -> None:
    """Though its machine is there: nobody could let it go on. One that is back at once gets it."""
    async with house(tmp_path, transfer_s=3.0) as h:
        vm_id = await h.running_vm("a")
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: "send" in h.migration(migration_id).began, "it is sent")
        await h.cluster.kill("b")
        if back:
            await h.cluster.boot("b")
        await h.until(lambda: is_final(h.migration(migration_id)), "over")
        assert h.state(vm_id) is VmState.RUNNING
        if not back:
            await h.cluster.boot("b")
        assert await h.check_peace(vm_id) == ("b" if back else "a")
        problem = h.migration(migration_id).problem
        assert (problem.code if problem else "") == ("" if back else "migration.target_silent")


async def test_a_target_that_is_barred_is_handed_nothing_and_the_guest_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", ha=GUARDED)
        await h.kill_worker("conductor")
        migration_id = await h.migrate(vm_id, "b")
        before = h.vm(vm_id)
        target_id = h.cluster["b"].node_id
        await h.records.change(MEMBERS, target_id, lambda seen: membership.barred(seen, seen, "silent"))
        await h.journal.hand_over(migration_id, None)
        assert h.vm(vm_id) == before
        problem = h.migration(migration_id).problem
        assert problem is not None
        assert problem.code == "migration.target_fenced"
        h.start_worker("conductor")
        await h.until(lambda: is_final(h.migration(migration_id)), "over")
        assert h.migration(migration_id).state is MigrationState.ROLLED_BACK
        assert await h.check_peace(vm_id) == "a"


def no_key(h: House) -> Once:
    return Once(h.records.store, "", "", h.clock.wall())


class Plug:
    """A node's power as a BMC shows it. obeys: whether it does what it has answered to."""

    def __init__(self, h: House, name: str, *, obeys: bool = True) -> None:
        self.h, self.name, self.obeys = h, name, obeys
        self.state = Power.ON
        self.asked = 0

    async def power(self) -> Power:
        return self.state

    async def off(self) -> None:
        self.asked += 1
        if self.obeys:
            await self.h.cluster.kill(self.name)
            self.h.cluster[self.name].host.reboot()
            self.state = Power.OFF


async def _plugged(h: House, name: str, *, obeys: bool = True) -> Plug:
    node_id, now = h.cluster[name].node_id, h.clock.wall()
    device = FenceDevice(
        id=node_id,
        kind=FenceDeviceKind.IPMI,
        address="bmc",
        user="u",
        sealed_password="",
        created_at=now,
        updated_at=now,
    )
    await h.records.create(FENCE_DEVICES, device)
    plug = Plug(h, name, obeys=obeys)
    h.switches[node_id] = plug
    return plug


async def test_power_seen_to_be_off_is_not_waited_for_and_frees_what_time_alone_would_not(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id, plain = await h.running_vm("a", ha=SURER), await h.running_vm("a")
        plug = await _plugged(h, "a")
        await h.cluster.disconnect("a")
        cut_s = h.clock.monotonic_s()
        await h.until(lambda: member(h, "a").proof is Proof.POWER, "proven")
        assert h.clock.monotonic_s() - cut_s < STANDARD.ttl_s, "before any deadline"
        assert plug.asked == 1
        await _runs_on(h, vm_id, "b")
        assert h.vm(plain).node_id == h.cluster["a"].node_id
        await h.until(lambda: "seen to be off" in h.records.find(NODES, member(h, "a").id).record.state_reason, "said")
        await h.cluster.boot("a")
        await h.cluster.connect("a")
        await h.until(lambda: node_state(h, "a") is NodeState.UP, "back")
        assert await h.check_peace(vm_id) == "b"


async def test_a_bmc_that_answers_and_does_nothing_frees_nothing_but_what_time_does(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        guarded, sure = await h.running_vm("a", ha=GUARDED), await h.running_vm("a", ha=SURER)
        plug = await _plugged(h, "a", obeys=False)
        await h.cluster.disconnect("a")
        await _runs_on(h, guarded, "b")
        await h.clock.advance(60)
        assert plug.asked > 2
        assert member(h, "a").proof is Proof.NONE
        assert h.cluster.world.running(sure) == ["a"]
        plug.obeys = True
        await _runs_on(h, sure, "b")


async def test_no_power_is_cut_of_a_node_that_heartbeats_nor_in_a_storm(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc") as h:
        await h.running_vm("a", ha=GUARDED)
        await h.running_vm("b", ha=GUARDED)
        plug = await _plugged(h, "a")
        await h.clock.advance(30)
        await h.cluster.disconnect("a")
        await h.cluster.disconnect("b")
        await h.clock.advance(60)
        assert plug.asked == 0


@pytest.mark.parametrize("with_unprotected", [False, True])
async def test_a_word_that_a_node_is_off_frees_its_vms(tmp_path: Path, with_unprotected: bool) -> None:
    async with house(tmp_path) as h:
        sure, plain = await h.running_vm("a", ha=SURER), await h.running_vm("a")
        seal = Seal("secret")
        fencing = FencingService(h.records, h.cluster, h.sights, h.clock, STANDARD, seal, opener(seal))
        with pytest.raises(StateConflict, match="heartbeats"):
            await fencing.confirm_off("a", "ada", no_key(h), with_unprotected=with_unprotected)
        await h.cluster.kill("a")
        h.cluster["a"].host.reboot()
        await h.until(lambda: node_state(h, "a") is NodeState.DOWN, "down")
        assert h.vm(sure).node_id == h.cluster["a"].node_id
        _, said = await fencing.confirm_off("a", "ada", no_key(h), with_unprotected=with_unprotected)
        assert said.proof is Proof.OPERATOR
        await _runs_on(h, sure, "b")
        assert "ada said that it is off" in member(h, "a").reason
        if not with_unprotected:
            await h.clock.advance(10)
            assert h.vm(plain).node_id == h.cluster["a"].node_id
            await fencing.confirm_off("a", "ada", no_key(h), with_unprotected=True)
        await _runs_on(h, plain, "b")
        await h.cluster.boot("a")
        await h.until(lambda: node_state(h, "a") is NodeState.UP, "back")
        assert not member(h, "a").all_vms
        assert [await h.check_peace(vm_id) for vm_id in (sure, plain)] == ["b", "b"]


async def test_a_node_on_hold_keeps_its_vms_while_its_agent_is_away(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id, a = await h.running_vm("a", ha=TIMED), h.cluster["a"]
        seal = Seal("secret")
        fencing = FencingService(h.records, h.cluster, h.sights, h.clock, STANDARD, seal, opener(seal))
        with pytest.raises(InvalidInput, match="for_s"):
            await fencing.hold("a", STANDARD.ttl_s - 1, "ada", no_key(h))
        pid, held = a.host.machines[vm_id].report.pid, asyncio.create_task(fencing.hold("a", 120.0, "ada", no_key(h)))
        await h.until(held.done, "on hold")
        held.result()
        assert member(h, "a").ttl_s == 120.0
        await h.cluster.kill("a")
        await h.clock.advance(STANDARD.ttl_s * 4)
        assert node_state(h, "a") is NodeState.UP
        assert h.cluster.world.running(vm_id) == ["a"]
        await h.cluster.boot("a")
        await h.until(lambda: member(h, "a").ttl_s == STANDARD.ttl_s, "the usual again")
        assert a.host.machines[vm_id].report.pid == pid
        assert await h.check_peace(vm_id) == "a"
        held = asyncio.create_task(fencing.hold("a", 30.0, "ada", no_key(h)))
        await h.until(held.done, "on hold again")
        await h.clock.advance(35)
        await h.until(lambda: member(h, "a").ttl_s == STANDARD.ttl_s, "over by itself")
        assert a.host.machines[vm_id].report.pid == pid


async def _runs_on(h: House, vm_id: str, name: str) -> None:
    """It was taken over, and its one copy runs there; what is left on a node that is away is gone once it is back."""
    await h.until(lambda: h.vm(vm_id).node_id == h.cluster[name].node_id, "taken over")
    await h.until(
        lambda: h.cluster.world.running(vm_id) == [name] and h.state(vm_id) is VmState.RUNNING, "runs elsewhere"
    )
    assert h.cluster.world.violations == []


async def test_switching_it_on_counts_from_the_next_start(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        spec = msgspec.structs.replace(h.vm(vm_id).spec, ha=GUARDED)
        await h.records.change(VMS, vm_id, lambda vm: msgspec.structs.replace(vm, spec=spec))
        await h.cluster.disconnect("a")
        await h.until(lambda: node_state(h, "a") is NodeState.DOWN, "down, not fenced")
        assert h.cluster.world.running(vm_id) == ["a"]
        assert h.vm(vm_id).task is None or h.vm(vm_id).task.kind is not TaskKind.START  # type: ignore[union-attr]


async def test_an_order_of_an_epoch_that_has_passed_starts_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id, a = await h.running_vm("a"), h.cluster["a"]
        holding, epoch = a.ledger.get(vm_id), member(h, "a").epoch
        assert holding is not None
        assert holding.spec is not None
        await h.kill_worker("reconciler")
        a.host.crash(vm_id)
        await h.cluster.kill("a")
        await h.cluster.boot("a")
        await h.until(lambda: member(h, "a").epoch > epoch, "joined anew")

        async def start(epoch: int) -> MachineReport:
            verb = wire.Start(spec=holding.spec, epoch=epoch)
            return await h.cluster.call(a.node_id, verb, MachineReport, deadline_s=5)

        for stale in (epoch, 0, member(h, "a").epoch + 1):
            with pytest.raises(Unavailable) as refused:
                await start(stale)
            assert [reason.code for reason in refused.value.reasons] == ["order.epoch"]
        assert h.cluster.world.running(vm_id) == []
        await h.until(lambda: a.member.tenure.epoch == member(h, "a").epoch, "it knows")
        assert (await start(member(h, "a").epoch)).status is MachineStatus.RUNNING
        await h.cluster.disconnect("a")
        a.host.crash(vm_id)
        await h.clock.advance(STANDARD.ttl_s - STANDARD.start_margin_s + 1)
        with pytest.raises(Unavailable) as late:
            await a.machines.start(wire.Start(spec=holding.spec, epoch=member(h, "a").epoch))
        assert [reason.code for reason in late.value.reasons] == ["order.deadline"]


async def test_from_an_agent_of_an_older_version_nothing_is_taken(tmp_path: Path) -> None:
    """It guards nothing and heartbeats nowhere, whatever the agent before it had promised."""
    async with house(tmp_path) as h:
        vm_id, a = await h.running_vm("a", ha=GUARDED), h.cluster["a"]
        before = a.host.machines[vm_id].report.pid
        await h.cluster.kill("a")
        a.takes_part, a.fence_class = False, FenceClass.NONE
        await h.cluster.boot("a")
        assert member(h, "a").fence_class is FenceClass.NONE

        def again() -> bool:
            machine = a.host.machines.get(vm_id)
            return (
                machine is not None and machine.report.pid not in (before, None) and h.state(vm_id) is VmState.RUNNING
            )

        await h.until(again, "ended by its old timer, and started again")
        assert h.cluster.world.running(vm_id) == ["a"]
        await h.cluster.disconnect("a")
        await h.until(lambda: node_state(h, "a") is NodeState.DOWN, "down by its line")
        await h.clock.advance(60)
        assert member(h, "a").state is MemberState.UP
        assert h.vm(vm_id).node_id == a.node_id


async def test_a_node_that_is_long_down_makes_no_storm_of_the_next(tmp_path: Path) -> None:
    async with house(tmp_path, nodes="abc") as h:
        vm_id = await h.running_vm("a", ha=GUARDED)
        await h.cluster.disconnect("c")
        await h.until(lambda: node_state(h, "c") is NodeState.DOWN, "down")
        await h.cluster.disconnect("a")
        await _runs_on(h, vm_id, "b")
