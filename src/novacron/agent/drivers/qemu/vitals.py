"""Signs of life of a machine that has moved: its guest's heartbeat, and its clock, put right when it is off.

heartbeat   the guest agent answers a ping; without one: its vCPU threads are woken and run, which under TCG and KVM
            alike they do only for the guest (nothing here asks QEMU to look into a vCPU meanwhile)
clock       the guest agent's time beside this host's, half of the asking's time allowed for the way; set when off
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import msgspec

from novacron.agent.drivers.qemu import guest_agent
from novacron.agent.drivers.qemu.machine import GUEST_AGENT_SOCKET, Machine
from novacron.clock import Clock
from novacron.errors import DeadlineExceeded, DriverError, MonitorFailed
from novacron.model.machine import MachineStatus
from novacron.model.verdict import CLOCK, HEARTBEAT, Check, Outcome, Signs

ANSWER_S = 1.0
SET_S = 4.0  # it may write its hardware clock too
OFF_MS = 1000.0
"""A guest's clock that is off by more is put right; by less its own time service does so."""
LOOK_S = 2.0
FIRST_PAUSE_S = 0.01  # what runs shows it at once, and its migration waits for this
LAST_PAUSE_S = 0.1
_NS_PER_MS = 1e6


class _Vcpu(msgspec.Struct, rename="kebab"):
    thread_id: int


class _Worked(msgspec.Struct, frozen=True):
    """What the kernel counts of the vCPUs' threads: how often they gave up their processor, and ticks of it used."""

    turns: int
    ticks: int


async def examine(machine: Machine) -> Signs:
    """Within ten seconds, whatever the guest does. :raise DriverError: QEMU does not answer."""
    report = await machine.refresh()
    if report.status is not MachineStatus.RUNNING:
        words = f"it is {report.status.value}{f': {report.reason}' if report.reason else ''}"
        return Signs(checks=tuple(_check(machine.clock, name, None, words) for name in (HEARTBEAT, CLOCK)))
    began_s = machine.clock.monotonic_s()
    silence = await _silence(machine)
    if silence is None:
        took_ms = (machine.clock.monotonic_s() - began_s) * 1e3
        beat = _check(machine.clock, HEARTBEAT, True, f"the guest agent answered after {took_ms:.0f} ms", began_s)
        return await _clock(machine, beat)
    clock = _check(machine.clock, CLOCK, None, f"nobody in the guest tells its time: {silence}")
    return Signs(checks=(await _by_vcpus(machine, silence, began_s), clock))


async def _silence(machine: Machine) -> str | None:
    """Why its guest agent does not answer; None: it does."""
    if not machine.record.guest_agent:
        return "it has no channel to a guest agent"
    try:
        await _ask(machine, "guest-ping", {}, ANSWER_S)
    except DriverError as wrong:
        return wrong.message
    return None


async def _by_vcpus(machine: Machine, silence: str, began_s: float) -> Check:
    threads = [vcpu.thread_id for vcpu in await machine.door().ask(list[_Vcpu], "query-cpus-fast")]
    pid = machine.process.identity.pid if machine.process else 0
    looked_s = machine.clock.monotonic_s()
    try:
        first, pause_s = _worked(pid, threads), FIRST_PAUSE_S
        while True:
            await machine.clock.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
            now, over_s = _worked(pid, threads), machine.clock.monotonic_s() - looked_s
            turns, ticks = now.turns - first.turns, now.ticks - first.ticks
            if ticks or turns > len(threads):  # one turn may be the end of what they did before
                words = f"within {over_s * 1e3:.0f} ms its vCPUs ran, and were woken {turns} times"
                return _check(machine.clock, HEARTBEAT, True, f"{words} ({silence})", began_s)
            if over_s > LOOK_S:
                break
    except OSError as wrong:
        return _check(machine.clock, HEARTBEAT, None, f"its vCPUs cannot be looked at: {wrong}", began_s)
    words = f"its vCPUs rested for {LOOK_S:g} s, which an idle guest's may ({silence})"
    return _check(machine.clock, HEARTBEAT, None, words, began_s)


def _worked(pid: int, threads: list[int]) -> _Worked:
    """:raise OSError: one of the threads has ended."""
    turns = ticks = 0
    for thread in threads:
        at = Path(f"/proc/{pid}/task/{thread}")
        lines = dict(line.split(":", 1) for line in (at / "status").read_text().splitlines() if ":" in line)
        turns += int(lines["voluntary_ctxt_switches"])
        fields = (at / "stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return _Worked(turns, ticks)


async def _clock(machine: Machine, beat: Check) -> Signs:
    clock, began_s = machine.clock, machine.clock.monotonic_s()
    before: float | None = None
    try:
        before = await _off_ms(machine)
        if abs(before) <= OFF_MS:
            return Signs(checks=(beat, _check(clock, CLOCK, True, _off(before), began_s)), clock_off_ms=before)
        await _ask(machine, "guest-set-time", {"time": int(clock.wall().timestamp() * 1e9)}, SET_S)
        after = await _off_ms(machine)
    except DriverError as wrong:
        refused = f"; {'; '.join(reason.message for reason in wrong.reasons)}" if wrong.reasons else ""
        why = f"{f'{_off(before)}, and was not put right: ' if before is not None else ''}{wrong.message}{refused}"
        failed = _check(clock, CLOCK, None if before is None else False, why, began_s)
        return Signs(checks=(beat, failed), clock_off_ms=before)
    words = f"{_off(before)}; set, it is {_way(after)}"
    checked = _check(clock, CLOCK, abs(after) <= OFF_MS, words, began_s)
    return Signs(checks=(beat, checked), clock_off_ms=before, clock_off_after_ms=after)


async def _off_ms(machine: Machine) -> float:
    """How far the guest's clock is ahead of this host's. Errors as for `guest_agent.freeze`."""
    asked_at, asked_s = machine.clock.wall(), machine.clock.monotonic_s()
    told = await _ask(machine, "guest-get-time", {}, ANSWER_S)
    if not isinstance(told, int) or isinstance(told, bool):
        raise MonitorFailed("the guest agent answered guest-get-time with something unexpected")
    way_ms = (machine.clock.monotonic_s() - asked_s) * 1e3 / 2
    return told / _NS_PER_MS - asked_at.timestamp() * 1e3 - way_ms


def _off(off_ms: float) -> str:
    return f"the guest's clock was {_way(off_ms)}"


def _way(off_ms: float) -> str:
    return f"{abs(off_ms):.0f} ms {'ahead of' if off_ms > 0 else 'behind'} its node's"


async def _ask(machine: Machine, command: str, arguments: dict[str, object], deadline_s: float) -> Any:
    try:
        connection = machine.run_dir.connect(GUEST_AGENT_SOCKET)
    except OSError as wrong:
        raise MonitorFailed(f"the guest agent cannot be reached: {wrong}") from wrong
    try:
        return await guest_agent.ask(connection, secrets.randbits(31), command, arguments, deadline_s)
    except DeadlineExceeded as late:
        raise MonitorFailed(late.message) from late


def _check(clock: Clock, name: str, held: bool | None, evidence: str, began_s: float | None = None) -> Check:
    outcome = Outcome.NOT_CHECKED if held is None else Outcome.PASSED if held else Outcome.FAILED
    took_ms = 0.0 if began_s is None else (clock.monotonic_s() - began_s) * 1e3
    return Check(name=name, outcome=outcome, evidence=evidence, took_ms=took_ms)
