"""Whether a VM can be rehearsed, and what was seen of its copy: pure; every refusal is a reason to act on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from novacron.control.migrations.decide import check_vm as check_movable
from novacron.control.migrations.decide import has_belongings
from novacron.control.migrations.plan import NodePlan, Plan, check_room
from novacron.errors import NoRoom, NovaCronError, Reason, StateConflict, Unsupported
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.migration import MigrationKind
from novacron.model.pool import Pool
from novacron.model.verdict import CLOCK, HEARTBEAT, RUNS, Check, Outcome, Signs, failures
from novacron.model.vm import Vm, running_spec, state_of, status_of
from novacron.model.volume import Volume

PLANNED, COPIED, CONSOLE = "planned", "copied", "console"
"""The checks of a rehearsal beside those of a migration."""

LOST = ("Kernel panic - not syncing", "No bootable device", "grub rescue>", "(initramfs)", "You are in emergency mode")
"""What a guest says on its serial line that got no further."""
GIB = 1 << 30
MAX_LINE = 120


# -- may it begin? -------------------------------------------------------------------------------------------


def check_vm(vm: Vm) -> None:
    """:raise StateConflict: it does not run. :raise Busy: other work holds it.
    :raise Unsupported: it has state that cannot be copied as it runs.
    """
    if status_of(vm) is not MachineStatus.RUNNING:
        seen = state_of(vm).value
        reason = Reason("state.conflict", f"state is {seen}", vm.name, f"novacron vm start {vm.name}")
        raise StateConflict(f"cannot rehearse {vm.name}: it is {seen}, and must be running", [reason])
    check_movable(vm, MigrationKind.LIVE)
    if has_belongings(running_spec(vm)):
        what = "a TPM's state" if running_spec(vm).tpm else "UEFI variables"
        message = f"it has {what} beside its disks, which cannot be copied while it runs"
        remedy = "rehearse a VM with BIOS and no TPM, or try a stopped clone of its disks"
        raise Unsupported(f"cannot rehearse {vm.name}: {message}", [Reason("vm.belongings", message, vm.name, remedy)])


def node_of(made: Plan) -> NodePlan:
    """Where it is rehearsed: where it would be moved to; else a node that could take it, though not within its goals.

    :raise NoRoom: no node, or not the one asked for, can take it; reasons for each.
    """
    check_room(made)
    if made.chosen is not None:
        return made.chosen
    able = [one for one in made.nodes if not one.is_here and not one.cannot]
    return next(one for one in able if made.asked.target_id in ("", one.node_id))


def check_space(
    copies: Mapping[str, str], volumes: Sequence[Volume], pools: Mapping[str, Pool], node: NodePlan
) -> None:
    """Whether the pools have room on that node for what the originals take. :raise NoRoom"""
    asked: dict[str, int] = {}
    for volume in volumes:
        if volume.id in copies:
            asked[volume.pool_id] = asked.get(volume.pool_id, 0) + volume.used_bytes
    reasons = []
    for pool_id, used in asked.items():
        reach = pools[pool_id].reach.get(node.node_id)
        if reach is not None and reach.size_bytes and used > reach.free_bytes:
            message = (
                f"{node.node_name}: {used / GIB:.1f} GiB of disks would be copied to pool {pools[pool_id].name}, "
                f"which has {reach.free_bytes / GIB:.1f} GiB left there"
            )
            reasons.append(Reason("pool.short", message, node.node_name, "make room there, or name another node"))
    if reasons:
        raise NoRoom("; ".join(reason.message for reason in reasons), reasons)


def planned(node: NodePlan) -> Check:
    """Whether it could be moved there, and what that would cost."""
    if node.choice is None:
        words = "; ".join(reason.message for reason in node.unmet)
        return Check(name=PLANNED, outcome=Outcome.FAILED, evidence=f"it could not be moved there as asked: {words}")
    way, told = node.choice.way, node.choice.way.predicted
    words = f"it could be moved to {node.node_name}: {way.kind.value}, {way.strategy.value}"
    words += f", in about {told.total_ms.expected / 1e3:.1f} s, standing still for {told.downtime_ms.expected:.0f} ms"
    return Check(name=PLANNED, outcome=Outcome.PASSED, evidence=words)


# -- what was seen -------------------------------------------------------------------------------------------


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked at one moment, age_s after the copy began. report, signs None: nobody answered, and `why` says so.

    console: what it has written on its serial line; speaks: whether its original has; has_agent: its guest is to have
    an agent.
    """

    age_s: float
    node: str
    report: MachineReport | None = None
    signs: Signs | None = None
    why: str = ""
    console: str = ""
    speaks: bool = False
    has_agent: bool = False


def copied(count: int, copied_bytes: int, took_ms: float) -> Check:
    """How its disks came there."""
    if not count:
        return Check(name=COPIED, outcome=Outcome.NOT_CHECKED, evidence="it has no disks")
    words = f"{count} disks, {copied_bytes} bytes, as after a power cut; the original ran on"
    return Check(name=COPIED, outcome=Outcome.PASSED, evidence=words, took_ms=took_ms)


def broke(name: str, error: NovaCronError) -> Check:
    """A step that met a refusal."""
    told = "".join(f"; {reason.message}" for reason in error.reasons if reason.message not in error.message)
    return Check(name=name, outcome=Outcome.FAILED, evidence=f"{error.message}{told}")


def looked_at(seen: Seen) -> tuple[Check, ...]:
    """What that shows: whether it runs, its guest's heartbeat and clock, and its serial line."""
    signs = {check.name: check for check in seen.signs.checks} if seen.signs else {}
    missing = Check(name=CLOCK, outcome=Outcome.NOT_CHECKED, evidence=seen.why or "nobody looked")
    return (_runs(seen), _heartbeat(seen, signs.get(HEARTBEAT)), signs.get(CLOCK, missing), _console(seen))


def _runs(seen: Seen) -> Check:
    if seen.report is None:
        return Check(name=RUNS, outcome=Outcome.FAILED, evidence=f"{seen.node} could not tell: {seen.why}")
    if seen.report.status is MachineStatus.RUNNING:
        words = f"{seen.age_s:.0f} s after it began its hypervisor on {seen.node} says that it runs"
        return Check(name=RUNS, outcome=Outcome.PASSED, evidence=words)
    why = f": {seen.report.reason}" if seen.report.reason else ""
    words = f"{seen.age_s:.0f} s after it began it is {seen.report.status.value}{why}"
    return Check(name=RUNS, outcome=Outcome.FAILED, evidence=words)


def _heartbeat(seen: Seen, found: Check | None) -> Check:
    beat = found or Check(name=HEARTBEAT, outcome=Outcome.NOT_CHECKED, evidence=seen.why or "nobody looked")
    if seen.has_agent and (seen.signs is None or seen.signs.clock_off_ms is None):
        words = f"its guest agent did not answer within {seen.age_s:.0f} s: {beat.evidence}"
        return Check(name=HEARTBEAT, outcome=Outcome.FAILED, evidence=words, took_ms=beat.took_ms)
    return beat


def _console(seen: Seen) -> Check:
    lines = [line.strip() for line in seen.console.splitlines() if line.strip()]
    lost = next((line for line in lines if any(words in line for words in LOST)), "")
    if lost:
        return Check(name=CONSOLE, outcome=Outcome.FAILED, evidence=f"on its serial line: {_shown(lost)}")
    if lines:
        words = f"its serial line speaks; last: {_shown(lines[-1])}"
        return Check(name=CONSOLE, outcome=Outcome.PASSED, evidence=words)
    if seen.speaks:
        words = f"its serial line is silent {seen.age_s:.0f} s after it began; the original's speaks"
        return Check(name=CONSOLE, outcome=Outcome.FAILED, evidence=words)
    return Check(name=CONSOLE, outcome=Outcome.NOT_CHECKED, evidence="nor does the original say anything there")


def _shown(line: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in line)[:MAX_LINE]


def is_enough(seen: Seen, found: Iterable[Check], *, watch_for_s: float, boot_within_s: float) -> bool:
    """Whether there is nothing more to wait for: it ended, it lives for as long as was asked for, or time is up."""
    found = tuple(found)
    if seen.report is not None and seen.report.status is not MachineStatus.RUNNING:
        return True
    if seen.age_s >= max(boot_within_s, watch_for_s):
        return True
    return seen.age_s >= watch_for_s and not failures(found)
