"""When each VM of a bulk migration moves and where to: the moves played through, one end after another. Pure.

Moves begin in order of priority, as far as the limits and the room that is left by then allow. Whatever streams over
the same node shares what that node's link carries. The same snapshot always gives the same timetable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from novacron.control.bulk_migrations.admission import Carried, link_of
from novacron.control.scheduler.placement import Candidate, Limits, Need, choose
from novacron.errors import Reason
from novacron.model.bulk_migration import BulkLimits, Load

AT_ONCE_S = 1e-9


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A move to one node. rate: bytes/s it asks for; link_rate: what the link between the two carries."""

    fixed_s: float
    stream_bytes: float = 0.0
    rate: float = 1.0
    link_rate: float = 1.0


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A VM to be moved. ways: by node id, room left aside; cannot: why there are none, or why not to the others.

    need: its room is what is promised to it where it is, too; a machine at rest has none. prefer: the node it goes to
    if that ever has room; avoid: nodes that are taken only when no other will do.
    """

    vm_id: str
    vm_name: str
    source_id: str
    need: Need
    priority: int = 0
    at_rest: bool = False
    ways: Mapping[str, Way] = {}
    cannot: tuple[Reason, ...] = ()
    prefer: str = ""
    avoid: tuple[str, ...] = ()


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One move of the timetable; waves count from 1, and begin together."""

    vm_id: str
    source_id: str
    target_id: str
    wave: int
    starts_at_s: float
    ends_at_s: float
    at_rest: bool = False


class Timetable(msgspec.Struct, frozen=True, kw_only=True):
    """moves: in the order they begin; unplaced: by VM id, why it finds no place."""

    moves: tuple[Move, ...] = ()
    unplaced: Mapping[str, tuple[Reason, ...]] = {}
    total_s: float = 0.0
    busiest: tuple[Load, ...] = ()
    held_back_s: Mapping[str, float] = {}


class UnderWay(msgspec.Struct, frozen=True, kw_only=True):
    """A move of the same bulk migration that has begun; its room is promised on both sides already."""

    wish: Wish
    target_id: str
    left_s: float


def timetable(
    wishes: Sequence[Wish],
    candidates: Sequence[Candidate],
    room: Limits,
    limits: BulkLimits,
    under_way: Sequence[UnderWay] = (),
) -> Timetable:
    """The timetable of these wishes on these nodes."""
    play = _Play(wishes, candidates, room, limits)
    for one in under_way:
        play.go_on(one)
    while play.begin_all() or play.active:
        play.until_next_end()
    return play.result()


class _Active:
    """A move that is being played."""

    def __init__(self, wish: Wish, target_id: str, way: Way) -> None:
        self.wish = wish
        self.target_id = target_id
        self.way = way
        self.fixed_s = max(way.fixed_s, AT_ONCE_S)
        self.bytes_left = way.stream_bytes

    @property
    def streams(self) -> bool:
        return self.fixed_s <= 0 < self.bytes_left

    @property
    def ended(self) -> bool:
        return self.fixed_s <= 0 and self.bytes_left <= 0

    def left_s(self, speed: float) -> float:
        """Until its present part ends."""
        return self.bytes_left / speed if self.streams else self.fixed_s

    def play(self, span_s: float, speed: float) -> None:
        if self.streams:
            left = self.bytes_left - span_s * speed
            self.bytes_left = left if left > speed * AT_ONCE_S else 0.0
        else:
            left_s = self.fixed_s - span_s
            self.fixed_s = left_s if left_s > AT_ONCE_S else 0.0


class _Play:
    def __init__(self, wishes: Sequence[Wish], candidates: Sequence[Candidate], room: Limits, limits: BulkLimits):
        self._room, self._limits = room, limits
        self._nodes = {one.node.id: one for one in sorted(candidates, key=lambda one: one.node.name)}
        able = [wish for wish in wishes if wish.ways]
        self._waiting = sorted(able, key=lambda one: (-one.priority, -one.need.memory_mib, one.vm_name))
        self._unplaced = {wish.vm_id: wish.cannot for wish in wishes if not wish.ways}
        self._carried = Carried()
        self.active: list[_Active] = []
        self._moves: dict[str, Move] = {}
        self._wave, self._now_s = 0, 0.0
        self._busy: dict[tuple[str, ...], tuple[int, float]] = {}
        self._held: dict[str, float] = {}
        self._why: dict[str, Reason] = {}

    # -- beginning -----------------------------------------------------------------------------------------

    def go_on(self, one: UnderWay) -> None:
        self.active.append(_Active(one.wish, one.target_id, Way(fixed_s=one.left_s)))
        if not one.wish.at_rest:
            self._carried.begin(one.wish.source_id, one.target_id)

    def begin_all(self) -> bool:
        """Begin whatever may begin now; whether anything did. What was waited for in vain is done without at last."""
        begun = self._begin(strict=True)
        if not begun and not self.active:
            begun = self._begin(strict=False)
        return begun

    def _begin(self, *, strict: bool) -> bool:
        begun = False
        for wish in tuple(self._waiting):
            target_id = self._target(wish, strict=strict)
            if target_id is None:
                continue
            if not begun:
                self._wave, begun = self._wave + 1, True
            self._begin_one(wish, target_id)
        return begun

    def _target(self, wish: Wish, *, strict: bool) -> str | None:
        """Where it may go at this moment."""
        full = None if wish.at_rest else self._carried.refusal(self._limits, wish.source_id)
        if full is not None:
            self._why[wish.vm_id] = full
            return None
        open_ = [node_id for node_id in self._nodes if node_id in wish.ways and self._admits(wish, node_id)]
        for group in _in_turn(wish, open_, strict=strict):
            placed = choose(wish.need, [self._nodes[node_id] for node_id in group], self._room)
            if placed.node_id is not None:
                return placed.node_id
            if placed.refusals:
                self._why[wish.vm_id] = placed.refusals[0]
        return None

    def _admits(self, wish: Wish, node_id: str) -> bool:
        why = None if wish.at_rest else self._carried.refusal(self._limits, wish.source_id, node_id)
        if why is not None:
            self._why[wish.vm_id] = why
        return why is None

    def _begin_one(self, wish: Wish, target_id: str) -> None:
        self._waiting.remove(wish)
        self._why.pop(wish.vm_id, None)
        move = Move(
            vm_id=wish.vm_id,
            source_id=wish.source_id,
            target_id=target_id,
            wave=self._wave,
            starts_at_s=self._now_s,
            ends_at_s=self._now_s,
            at_rest=wish.at_rest,
        )
        self._moves[wish.vm_id] = move
        self._promise(target_id, wish, 1)
        if not wish.at_rest:
            self._carried.begin(wish.source_id, target_id)
        self.active.append(_Active(wish, target_id, wish.ways[target_id]))
        for key in _places(wish.source_id, target_id):
            moves, busy_s = self._busy.get(key, (0, 0.0))
            self._busy[key] = (moves + 1, busy_s)

    # -- time passing --------------------------------------------------------------------------------------

    def until_next_end(self) -> None:
        """Let time pass until a move has ended."""
        while self.active and not any(one.ended for one in self.active):
            speeds = self._speeds()
            span_s = min(one.left_s(speed) for one, speed in zip(self.active, speeds, strict=True))
            for one, speed in zip(self.active, speeds, strict=True):
                one.play(span_s, speed)
            self._account(span_s)
        for one in [one for one in self.active if one.ended]:
            self._end(one)

    def _speeds(self) -> list[float]:
        """Bytes a second of each active move: what it asks for, or less where its nodes' links carry less."""
        asked: dict[str, float] = {}
        carries: dict[str, float] = {}
        for one in self.active:
            if one.streams:
                for node in (one.wish.source_id, one.target_id):
                    asked[node] = asked.get(node, 0.0) + one.way.rate
                    carries[node] = max(carries.get(node, 0.0), one.way.link_rate)
        parts = {node: min(1.0, carries[node] / asked[node]) for node in asked}
        return [
            one.way.rate * min(parts.get(one.wish.source_id, 1.0), parts.get(one.target_id, 1.0)) for one in self.active
        ]

    def _account(self, span_s: float) -> None:
        self._now_s += span_s
        for key in {key for one in self.active for key in _places(one.wish.source_id, one.target_id)}:
            moves, busy_s = self._busy.get(key, (0, 0.0))
            self._busy[key] = (moves, busy_s + span_s)
        for wish in self._waiting:
            why = self._why.get(wish.vm_id)
            if why is not None:
                said = f"{why.code} {why.subject}".strip()
                self._held[said] = self._held.get(said, 0.0) + span_s

    def _end(self, one: _Active) -> None:
        self.active.remove(one)
        if one.wish.at_rest:
            self._promise(one.target_id, one.wish, -1)  # it holds room again when it is started
        else:
            self._promise(one.wish.source_id, one.wish, -1)
            self._carried.end(one.wish.source_id, one.target_id)
        move = self._moves.get(one.wish.vm_id)
        if move is not None:
            self._moves[one.wish.vm_id] = msgspec.structs.replace(move, ends_at_s=self._now_s)

    def _promise(self, node_id: str, wish: Wish, by: int) -> None:
        node = self._nodes.get(node_id)
        if node is None:
            return
        self._nodes[node_id] = msgspec.structs.replace(
            node,
            committed_memory_mib=node.committed_memory_mib + by * wish.need.memory_mib,
            committed_vcpus=node.committed_vcpus + by * wish.need.vcpus,
        )

    # -- the end -------------------------------------------------------------------------------------------

    def result(self) -> Timetable:
        for wish in self._waiting:
            nodes = [self._nodes[node_id] for node_id in self._nodes if node_id in wish.ways]
            self._unplaced[wish.vm_id] = (*choose(wish.need, nodes, self._room).refusals, *wish.cannot)
        ordered = sorted(self._moves.values(), key=lambda one: (one.starts_at_s, one.wave))
        busiest = sorted(self._busy.items(), key=lambda one: (-one[1][1], -one[1][0], len(one[0]), one[0]))
        return Timetable(
            moves=tuple(ordered),
            unplaced=self._unplaced,
            total_s=self._now_s,
            busiest=tuple(Load(nodes=key, moves=moves, busy_s=busy_s) for key, (moves, busy_s) in busiest),
            held_back_s=self._held,
        )


def _in_turn(wish: Wish, open_: Sequence[str], *, strict: bool) -> list[list[str]]:
    """Groups of nodes to choose from, one after the other. strict: what is preferred is waited for."""
    if wish.prefer and wish.prefer in wish.ways and strict:
        return [[wish.prefer] if wish.prefer in open_ else []]
    fresh = [node_id for node_id in open_ if node_id not in wish.avoid]
    waits = strict and any(node_id not in wish.avoid for node_id in wish.ways)
    return [fresh] if waits else [fresh, [node_id for node_id in open_ if node_id in wish.avoid]]


def _places(source_id: str, target_id: str) -> tuple[tuple[str, ...], ...]:
    return ((source_id,), (target_id,), link_of(source_id, target_id))
