"""The plan of a move: for every node whether the VM can go there, why not, how it would, and what that costs. Pure.

The dry run shows it and a migration begins from it: there is no other way to decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from novacron.control.migrations import choice, decide, history, predict, transport
from novacron.control.migrations.choice import Choice, Course
from novacron.control.migrations.disks import DiskAt, Luggage, luggage, own_pool
from novacron.control.migrations.goals import Effective, sentences
from novacron.control.migrations.habits import habits
from novacron.control.scheduler.filters import reachable_storage
from novacron.control.scheduler.placement import Candidate, Limits, Need, choose, refusals
from novacron.control.scheduler.snapshot import ALONE, Company
from novacron.errors import GoalsUnmet, InvalidInput, NoRoom, NovaCronError, Reason
from novacron.model.machine import MachineStatus
from novacron.model.migration import DiskMove, Migration, MigrationKind, Strategy
from novacron.model.pool import Pool
from novacron.model.prediction import Measurement, Range
from novacron.model.vm import Vm, running_spec, status_of

BELONGINGS = "its UEFI variables and its TPM's state go from one node's default pool to the other's"
STAYS_PAUSED = "it is paused, and stays so: its guest does not run on the way"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. target_id empty, kind None, strategy None: the engine chooses.

    pools: by volume id, the pool a disk is to be in after the move; the others go no further than they must.
    """

    effective: Effective
    target_id: str = ""
    pools: Mapping[str, Pool] = {}
    kind: MigrationKind | None = None
    strategy: Strategy | None = None


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to decide from. measured None: it was not, and `note` says why; past: migrations, in any order.

    snapshots: how many the VM has. company: what rules between VMs say of each node.
    """

    nodes: list[Candidate]
    limits: Limits
    disks: tuple[DiskAt, ...] = ()
    snapshots: int = 0
    company: Company = ALONE
    measured: Measurement | None = None
    note: str = ""
    past: Sequence[Migration] = ()
    probes: history.Probes = history.Probes()


class NodePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One node. is_here: it is there already. cannot: why it cannot take it; unmet: why no way there reaches the goals.

    choice: how it would go; None when there are reasons. disks: those that are copied; belongings: so is what else
    belongs to it. score: the scheduler's; None
    when it cannot take it.
    """

    node_id: str
    node_name: str
    is_here: bool = False
    cannot: tuple[Reason, ...] = ()
    unmet: tuple[Reason, ...] = ()
    choice: Choice | None = None
    disks: tuple[DiskMove, ...] = ()
    belongings: bool = False
    score: float | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """chosen: where it would go if it were begun now; None: nowhere. source_id: where it is."""

    vm_id: str
    vm_name: str
    source_id: str
    at_rest: bool
    paused: bool
    asked: Asked
    measured: Measurement | None
    note: str
    nodes: tuple[NodePlan, ...]
    chosen: NodePlan | None

    def explanation(self, node: NodePlan) -> tuple[str, ...]:
        """Why that node, that kind and that strategy, in sentences; empty when it cannot go there."""
        if node.choice is None:
            return ()
        if self.chosen is not node:
            target = "another was asked for" if self.asked.target_id else "another scored better"
        else:
            best = f"chosen, it scored best of {len(self.nodes) - 1} other nodes"
            target = "asked for" if self.asked.target_id else best
        words = f"target {node.node_name}: {target}"
        note = (self.note,) if self.note else ()
        basis = node.choice.way.predicted.basis
        disks = (_copies(node.disks),) if node.disks else ()
        beside = (BELONGINGS,) if node.belongings else ()
        stays = (STAYS_PAUSED,) if self.paused else ()
        return (words, *disks, *beside, *stays, *node.choice.why, *sentences(self.asked.effective), *basis, *note)


def plan(vm: Vm, asked: Asked, known: Known) -> Plan:
    """The plan for this VM.

    :raise InvalidInput: the target is where it is already.
    :raise StateConflict, Busy: it cannot be moved now, anywhere. :raise Unsupported: its node cannot send it.
    """
    kind = MigrationKind.LIVE if asked.kind is None and asked.strategy is not None else asked.kind
    decide.check_vm(vm, kind)
    stays = asked.target_id == vm.node_id
    if stays and not asked.pools:
        raise InvalidInput.field("target_node", f"{vm.name} is there already", "name another node, or none")
    if stays and kind not in (None, MigrationKind.LIVE) and not decide.is_at_rest(vm):
        raise InvalidInput.field("kind", "its disks move while it runs", "leave it out, or name another node")
    source = decide.source_of(vm, known.nodes)
    at_rest = decide.is_at_rest(vm)
    streams = not at_rest and not stays and kind is not MigrationKind.COLD
    need = msgspec.structs.replace(decide.need_of(vm, streams=streams), company=known.company)
    if streams:
        decide.check_may_leave(vm)
        decide.check_source(vm, source, need)
    past = history.completed(known.past)
    outline = Course(
        node="",
        load=predict.load_of(
            known.measured,
            running_spec(vm).memory_mib,
            runs=status_of(vm) is MachineStatus.RUNNING,
            habits=habits(past, vm.id),
        ),
        link=history.link((), "", "", asked.effective.goals),
        costs=history.costs(past),
        at_rest=at_rest,
        asked_kind=kind,
        asked_strategy=asked.strategy,
    )
    scores = {one.node_id: one.total for one in choose(need, known.nodes, known.limits).scores}
    packs = history.packs(past, vm.id)
    nodes = tuple(
        _node(vm, candidate, source, need, outline, asked, known, past, scores, packs)
        for candidate in sorted(known.nodes, key=lambda one: one.node.name)
    )
    return Plan(
        vm_id=vm.id,
        vm_name=vm.name,
        source_id=vm.node_id,
        at_rest=at_rest,
        paused=decide.is_paused(vm),
        asked=asked,
        measured=known.measured,
        note=known.note,
        nodes=nodes,
        chosen=_chosen(nodes, asked.target_id),
    )


def _node(
    vm: Vm,
    candidate: Candidate,
    source: Candidate,
    need: Need,
    outline: Course,
    asked: Asked,
    known: Known,
    past: Sequence[Migration],
    scores: Mapping[str, float],
    packs: Range,
) -> NodePlan:
    node = candidate.node
    found = NodePlan(node_id=node.id, node_name=node.name, is_here=candidate is source, score=scores.get(node.id))
    packed = _packed(vm, candidate, source, asked, known)
    if candidate is source:
        return _here(found, source, outline, asked, packed)
    need = msgspec.structs.replace(need, pools=packed.pools, pool_id=own_pool(source) if packed.own else "")
    cannot = (*refusals(need, candidate, known.limits), *packed.cannot)
    if cannot:
        return msgspec.structs.replace(found, cannot=cannot)
    found = msgspec.structs.replace(found, disks=packed.moves, belongings=packed.belongings)
    course = msgspec.structs.replace(
        outline,
        node=node.name,
        link=history.link(past, source.node.id, node.id, asked.effective.goals, known.probes),
        no_postcopy=decide.no_postcopy(source, candidate, need.driver),
        channels=decide.channels(source, candidate, need.driver),
        disk_bytes=sum(move.used_bytes or move.size_bytes for move in packed.moves),
    )
    answer = transport.choose(course, asked.effective, packs, decide.no_proxies(source, candidate, need.driver))
    if isinstance(answer, Choice):
        return msgspec.structs.replace(found, choice=answer)
    return msgspec.structs.replace(found, unmet=answer.reasons)


def _packed(vm: Vm, candidate: Candidate, source: Candidate, asked: Asked, known: Known) -> Luggage:
    spec = running_spec(vm)
    return luggage(
        known.disks,
        asked.pools,
        source,
        candidate,
        snapshots=known.snapshots,
        belongings=decide.has_belongings(spec),
        unrecorded=len(known.disks) < len(spec.disks),
    )


def _here(found: NodePlan, source: Candidate, outline: Course, asked: Asked, packed: Luggage) -> NodePlan:
    """The node it is on: nothing, or its disks alone into other pools."""
    if not asked.pools:
        return found
    if not packed.moves:
        there = Reason("disk.there", "its disks are in that pool already", found.node_name, "name another pool")
        return msgspec.structs.replace(found, cannot=(there,))
    unreached = reachable_storage(Need(memory_mib=0, vcpus=0, pools=packed.pools), source, Limits())
    cannot = (*([unreached] if unreached else ()), *packed.cannot)
    if cannot:
        return msgspec.structs.replace(found, cannot=cannot)
    disk_bytes = sum(move.used_bytes or move.size_bytes for move in packed.moves)
    return msgspec.structs.replace(
        found, disks=packed.moves, choice=choice.staying(outline, asked.effective, disk_bytes)
    )


def _copies(moves: Sequence[DiskMove]) -> str:
    used = sum(move.used_bytes for move in moves) / (1 << 30)
    what = "one disk is" if len(moves) == 1 else f"{len(moves)} disks are"
    return f"{what} copied ({used:.1f} GiB as last counted), and kept alike until the machine moves"


def _chosen(nodes: Sequence[NodePlan], target_id: str) -> NodePlan | None:
    """The node asked for; else the one that scores best. Equal scores: the name that sorts first."""
    able = [one for one in nodes if one.choice is not None and target_id in ("", one.node_id)]
    return min(able, key=lambda one: (-(one.score or 0.0), one.node_name), default=None)


def begun(made: Plan) -> tuple[NodePlan, Choice]:
    """Where it goes and how.

    :raise GoalsUnmet: a node could take it, but no way that is allowed reaches the goals.
    :raise NoRoom: no node, or not the one asked for, can take it; reasons for each.
    """
    if made.chosen is not None and made.chosen.choice is not None:
        return made.chosen, made.chosen.choice
    raise _refusal(made)


def check_room(made: Plan) -> None:
    """Whether a node could take it, whatever the goals. :raise NoRoom"""
    if all(one.cannot for one in _looked_at(made)):
        raise _refusal(made)


def _looked_at(made: Plan) -> list[NodePlan]:
    target_id = made.asked.target_id
    return [one for one in made.nodes if one.node_id == target_id or (not target_id and not one.is_here)]


def _refusal(made: Plan) -> NovaCronError:
    target_id, looked_at = made.asked.target_id, _looked_at(made)
    unmet = [reason for one in looked_at for reason in one.unmet]
    if unmet:
        return GoalsUnmet(f"cannot migrate {made.vm_name} as asked: {unmet[0].message}", unmet)
    telling = [reason for one in looked_at for reason in one.cannot]
    told = "; ".join(reason.message for reason in telling[:5]) or "there is no other node"
    where = "the target cannot take it" if target_id else "no other node can take it"
    return NoRoom(f"cannot migrate {made.vm_name}: {where}: {told}", telling)
