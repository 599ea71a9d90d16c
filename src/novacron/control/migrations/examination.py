"""Finds out what became of a machine that moved, for the verdict on its record. Decided apart from done: see below.

All is asked at once, after the guest has gone on, and within seconds. Whoever does not answer has found nothing out:
that fails no check and stops no migration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping

import msgspec

from novacron.clock import Clock
from novacron.control.link import Agents
from novacron.control.migrations.comparison import Comparison
from novacron.control.migrations.reachable import WITHIN_S, Finding
from novacron.control.store.kinds import NODES
from novacron.control.store.records import Records
from novacron.errors import NovaCronError
from novacron.model.machine import ENDED, MachineReport, MachineStatus
from novacron.model.migration import Migration, MigrationKind
from novacron.model.verdict import NETWORK, ONLY_THERE, RUNS, Check, Outcome, Signs, Verdict, whole
from novacron.model.vm import Vm
from novacron.wire import moving

WHEREABOUTS_S = 3.0
EXAMINE_S = 12.0
STANDS = ENDED | {MachineStatus.HANDED_OFF, MachineStatus.INCOMING}
"""Statuses of a copy that does not run, and will not without being told to by its owner's generation."""


class Examination:
    """`look` asks, `verdict` puts together; nothing is held."""

    def __init__(self, records: Records, agents: Agents, clock: Clock) -> None:
        self._records = records
        self._agents = agents
        self._clock = clock
        self._comparison = Comparison(agents, clock)

    async def look(self, migration: Migration, vm: Vm) -> Signs:
        """Ask its target for its guest's signs of life, and all other nodes what they have of it."""
        source = self._records.name(NODES, migration.source_node)
        signs, alone, disks = await asyncio.gather(
            self._signs(migration, vm), self._only_there(migration, vm), self._comparison.check(migration, vm, source)
        )
        return msgspec.structs.replace(signs, checks=(*signs.checks, alone, disks))

    async def end(self, migration: Migration, vm: Vm) -> None:
        """Its verdict is on the record."""
        await self._comparison.end(migration, vm)

    def verdict(self, migration: Migration, report: MachineReport, finding: Finding, signs: Signs) -> Verdict:
        """Of a machine that its target reports so, that was heard so on its network, and that was seen so."""
        heard = network(finding, self._records.name(NODES, finding.checked_by), migration.kind)
        target = self._records.name(NODES, migration.target_node)
        found = [runs(report, target, paused=migration.paused), heard, *signs.checks]
        return Verdict(
            at=self._clock.wall(),
            checks=whole(found),
            clock_off_ms=signs.clock_off_ms,
            clock_off_after_ms=signs.clock_off_after_ms,
        )

    async def _signs(self, migration: Migration, vm: Vm) -> Signs:
        if migration.paused:
            return not_examined("it is paused, as it was before the move")
        verb = moving.Examine(vm_id=vm.id, generation=vm.generation, migration_id=migration.id)
        try:
            return await self._agents.call(migration.target_node, verb, Signs, deadline_s=EXAMINE_S)
        except NovaCronError as error:
            why = f"{self._records.name(NODES, migration.target_node)} could not look: {error.message}"
            return not_examined(why)

    async def _only_there(self, migration: Migration, vm: Vm) -> Check:
        began_s = self._clock.monotonic_s()
        others = [stored.record.id for stored in self._records.all(NODES) if stored.record.id != migration.target_node]
        asked = [one for one in others if one == migration.source_node or self._agents.is_connected(one)]
        answers = await asyncio.gather(*(_told(self._whereabouts(node_id, vm)) for node_id in asked))
        said = {self._records.name(NODES, node_id): answer for node_id, answer in zip(asked, answers, strict=True)}
        check = only_there(said, self._records.name(NODES, migration.source_node), len(others) - len(asked))
        return msgspec.structs.replace(check, took_ms=(self._clock.monotonic_s() - began_s) * 1e3)

    async def _whereabouts(self, node_id: str, vm: Vm) -> MachineReport:
        verb = moving.Whereabouts(vm_id=vm.id, generation=vm.generation)
        return await self._agents.call(node_id, verb, MachineReport, deadline_s=WHEREABOUTS_S)


async def _told(asking: Awaitable[MachineReport]) -> MachineReport | str:
    try:
        return await asking
    except NovaCronError as error:
        return error.message


# -- decided ---------------------------------------------------------------------------------------------------


def not_examined(why: str) -> Signs:
    """Its guest's signs of life are not known."""
    missing = (Check(name=name, outcome=Outcome.NOT_CHECKED, evidence=why) for name in ("heartbeat", "clock"))
    return Signs(checks=tuple(missing))


def runs(report: MachineReport, target: str, *, paused: bool = False) -> Check:
    """What its target's hypervisor said. paused: it is to stand still there."""
    if paused and report.status is MachineStatus.PAUSED:
        words = f"its hypervisor on {target} says that it is there and stands still, as it did before"
        return Check(name=RUNS, outcome=Outcome.PASSED, evidence=words)
    if report.status is MachineStatus.RUNNING:
        words = f"its hypervisor on {target} says that it runs"
        return Check(name=RUNS, outcome=Outcome.PASSED, evidence=words)
    why = f": {report.reason}" if report.reason else ""
    words = f"it ran on {target}, and is {report.status.value} since{why}"
    return Check(name=RUNS, outcome=Outcome.NOT_CHECKED, evidence=words)


def only_there(said: Mapping[str, MachineReport | str], source: str, away: int) -> Check:
    """What all other nodes said of it by name: a report, or why there is none. away: nodes that could not be asked."""
    seen = {name: answer for name, answer in said.items() if isinstance(answer, MachineReport)}
    unsure = {name: one for name, one in seen.items() if one.status is MachineStatus.UNKNOWN}
    active = {name: one for name, one in seen.items() if one.status not in STANDS and name not in unsure}
    if active:
        words = _list(f"on {name} it is {one.status.value}" for name, one in active.items())
        return Check(name=ONLY_THERE, outcome=Outcome.FAILED, evidence=words)
    if source not in seen or source in unsure:
        answer = said.get(source, "it is no node any more")
        why = answer if isinstance(answer, str) else answer.reason or "its hypervisor does not answer"
        words = f"what is on {source} is not known: {why}"
        return Check(name=ONLY_THERE, outcome=Outcome.NOT_CHECKED, evidence=words)
    words = f"on {source} it is {_WORDS.get(seen[source].status, seen[source].status.value)}"
    rest, silent = len(seen) - len(unsure) - 1, len(said) - len(seen) + len(unsure) + away
    words += f"; on {rest} other nodes nothing of it runs" if rest else ""
    words += f"; {silent} nodes could not be asked" if silent else ""
    return Check(name=ONLY_THERE, outcome=Outcome.PASSED, evidence=words)


_WORDS = {MachineStatus.HANDED_OFF: "handed off and stands still", MachineStatus.ABSENT: "gone"}


def network(finding: Finding, asker: str, kind: MigrationKind) -> Check:
    """What a third node heard of it."""
    if finding.gap_ms is not None:
        words = f"it answered {asker}, {finding.gap_ms:.0f} ms after its source stood still"
        return Check(name=NETWORK, outcome=Outcome.PASSED, evidence=words, took_ms=max(0.0, finding.gap_ms))
    if finding.checked_by and kind is not MigrationKind.COLD:
        return Check(name=NETWORK, outcome=Outcome.FAILED, evidence=finding.note, took_ms=WITHIN_S * 1e3)
    words = finding.note or "it has no address on a network of ours, or nobody there could ask for it"
    return Check(name=NETWORK, outcome=Outcome.NOT_CHECKED, evidence=words)


def _list(words: Iterable[str]) -> str:
    return "; ".join(words)
