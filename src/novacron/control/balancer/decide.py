"""Which VMs had better be elsewhere: a pure function of a scene, every move and every no with its reason.

First VMs that stand against a hard rule, then those whose soft rules are better met elsewhere, then load. Each move
makes the whole cluster's score strictly better, the moves before it done; none makes a more pressing part of it worse.
So moves come to an end as long as nothing else changes. What lies between the two nodes of a move is asked of a draft
in which VMs that move hold both their nodes, as they do while they move: no room is counted on that is not free yet.
"""

from __future__ import annotations

from novacron.control.balancer.company import Company, Standing
from novacron.control.balancer.plan import Move, NodeUse, Plan, Score, score_of
from novacron.control.balancer.scene import Post, Price, Pricing, Scene, Seat
from novacron.control.balancer.use import Relief, Uses
from novacron.control.scheduler.draft import Draft
from novacron.errors import Reason
from novacron.model.balancer import Why

EFFECT = 0.5
"""A move for load must relieve the more strained node by at least this part of what it lays on the other."""
STANDSTILL = 60.0
"""A second in which the guest stands still weighs as so many seconds of moving it."""
LEAST = 1e-6
"""Less is no better."""
MOST_SOURCES, MOST_TARGETS, MOST_SEATS, MOST_PRICED, MOST_TOLD = 4, 8, 32, 48, 50


def price_s(price: Price) -> float:
    """What a move costs, in seconds of moving."""
    return price.total_s + STANDSTILL * price.downtime_s


def decide(scene: Scene, pricing: Pricing) -> Plan:
    """The moves that may begin now, in order, and why there are no more."""
    return _Sketch(scene, pricing).plan()


class _Sketch:
    """One decision in the making."""

    def __init__(self, scene: Scene, pricing: Pricing) -> None:
        self._scene = scene
        self._settings = scene.settings
        self._pricing = pricing
        self._posts = {post.node.id: post for post in scene.posts}
        self._company = Company(scene)
        self._uses = Uses(scene)
        self._standing = self._company.standing()
        self._free = max(0, self._settings.max_moves - scene.under_way)
        self._moves: list[Move] = []
        self._promised: list[tuple[Seat, str]] = []
        self._told: dict[tuple[str, str], Reason] = {}
        self._priced = 0
        self._on_node: dict[str, list[Seat]] = {}
        for seat in scene.seats:
            self._on_node.setdefault(seat.node_id, []).append(seat)

    def plan(self) -> Plan:
        before, nodes = self._score(), self._uses.open_nodes()
        used = {node_id: self._uses.of(node_id) for node_id in nodes}
        self._mend()
        self._soothe()
        self._even_out()
        if not self._free:
            told = f"{self._settings.max_moves} of its moves are under way or begin now"
            self._tell(Reason("balance.max_moves", told, "", "wait, or: novacron balancer set --max-moves"))
        return Plan(
            moves=tuple(self._moves),
            reasons=tuple(self._told.values()),
            nodes=tuple(
                NodeUse(node_id=one, node=self._name(one), before=used[one], after=self._uses.of(one)) for one in nodes
            ),
            by_load=self._uses.by_load,
            before=before,
            after=self._score(),
        )

    def _score(self) -> Score:
        return score_of(self._standing, self._uses.imbalance())

    # -- rules ---------------------------------------------------------------------------------------------

    def _mend(self) -> None:
        """VMs that stand against a hard rule."""
        for seat in sorted(self._company.minding, key=lambda one: one.vm_name):
            broken = tuple(self._company.broken(seat)) if self._free else ()
            if broken and self._may_move(seat, broken[0]):
                self._mend_one(seat, broken)

    def _mend_one(self, seat: Seat, broken: tuple[Reason, ...]) -> None:
        found = self._able(seat)
        changes = [(self._company.change(seat, one), one) for one in found]
        mending = [(change, one) for change, one in changes if change.broken < 0]
        for change, target_id in mending:
            price = self._price(seat, target_id)
            if price is not None:
                self._take(seat, target_id, Why.HARD_RULE, broken, price, change)
                return
        if not found:
            self._no_target(seat, broken[0].message)
        elif not mending:
            told = f"{seat.vm_name} stays ({broken[0].message}): wherever it can go, rules of others would be broken"
            self._tell(Reason("balance.rules_of_others", told, seat.vm_name, "change one of the rules"))

    def _soothe(self) -> None:
        """VMs whose soft rules are better met elsewhere, by a margin."""
        unmet = ((self._company.of(seat).unmet, seat) for seat in self._company.minding)
        for _, seat in sorted(((-one, seat) for one, seat in unmet if one > LEAST), key=lambda pair: pair[0]):
            step = self._settings.margin * self._company.lacking(seat)
            if self._free and seat.held is None and not self._has_moved(seat):
                self._soothe_one(seat, max(step, LEAST))

    def _soothe_one(self, seat: Seat, step: float) -> None:
        changes = [(self._company.change(seat, one), one) for one in self._able(seat)]
        better = [(change, one) for change, one in changes if change.broken <= 0 and change.unmet <= -step]
        for change, target_id in sorted(better, key=lambda pair: pair[0].unmet):
            price = self._paying(seat, target_id, 1.0)
            if price is not None:
                told = f"its soft rules are better met by {-change.unmet:.2f} of {self._company.lacking(seat):.2f}"
                self._take(seat, target_id, Why.SOFT_RULE, (Reason("rules.unmet", told, seat.vm_name),), price, change)
                return

    # -- load ----------------------------------------------------------------------------------------------

    def _even_out(self) -> None:
        while self._free and self._relieve():
            pass

    def _relieve(self) -> bool:
        """One move for load, if there is one."""
        nodes = [one for one in self._uses.open_nodes() if self._takes_part(self._posts[one])]
        if len(nodes) < 2:
            told = "fewer than two nodes take part: the others are cordoned, away, or had a move lately"
            self._tell(Reason("balance.alone", told, "", "novacron node list"))
            return False
        strains = [self._uses.of(one).strain for one in nodes]
        sources = [one for one, strain in zip(nodes, strains, strict=True) if self._is_far(strain - strains[-1])]
        if not sources:
            told = (
                f"{self._name(nodes[0])} is used to {strains[0]:.0%} and {self._name(nodes[-1])} to {strains[-1]:.0%}: "
                f"they are not {self._settings.margin:.0%} apart"
            )
            self._tell(Reason("balance.even", told, "", "wait, or: novacron balancer set --margin"))
        targets = list(reversed(nodes))
        return any(self._relieve_node(source_id, targets) for source_id in sources[:MOST_SOURCES])

    def _relieve_node(self, source_id: str, targets: list[str]) -> bool:
        """A VM less on that node. targets: the least strained first."""
        light = [one for one in targets if one != source_id][:MOST_TARGETS]
        ranked = []
        for seat in self._on_node.get(source_id, ()):
            if not seat.for_load or self._has_moved(seat):
                continue
            best = max(self._uses.relief(seat, one).gain for one in light)
            if best > LEAST:
                ranked.append((-best, seat.vm_name, seat))
        ranked.sort(key=lambda one: one[:2])
        for _, _, seat in ranked[:MOST_SEATS]:
            too_much = Reason("node.strained", f"{self._name(source_id)} is among the most strained", seat.vm_name)
            if self._may_move(seat, too_much) and self._relieve_by(seat, light):
                return True
        if not ranked:
            told = f"{self._name(source_id)} is strained, but no VM of it would leave two nodes better off"
            self._tell(Reason("balance.no_vm", told, self._name(source_id), "split large VMs, or add a node"))
        return False

    def _relieve_by(self, seat: Seat, light: list[str]) -> bool:
        able = frozenset(self._able(seat))
        if not able & frozenset(light):
            self._no_target(seat, "it would go to one that is less used")
        for target_id in light:
            relief = self._uses.relief(seat, target_id)
            if target_id not in able or not self._is_far(relief.gap) or relief.gain < EFFECT * relief.carried:
                continue
            change = self._company.change(seat, target_id)
            evener = self._uses.imbalance() - self._uses.imbalance((seat, target_id))
            if change.broken > 0 or change.unmet > LEAST or evener <= LEAST or relief.gain <= LEAST:
                continue
            price = self._paying(seat, target_id, min(1.0, relief.gain / relief.carried))
            if price is not None:
                self._take(seat, target_id, Why.LOAD, (self._strained(seat, target_id, relief),), price, change)
                return True
        return False

    def _is_far(self, gap: float) -> bool:
        return gap >= max(self._settings.margin, LEAST)

    def _takes_part(self, post: Post) -> bool:
        """In moves for load."""
        if post.rests is not None:
            self._tell(post.rests)
        return post.is_open and post.rests is None

    def _strained(self, seat: Seat, target_id: str, relief: Relief) -> Reason:
        one, other = self._uses.of(seat.node_id), self._uses.of(target_id)
        told = (
            f"{self._name(seat.node_id)} is used to {one.strain:.0%} (memory {one.memory:.0%}, CPU {one.cpu:.0%}), "
            f"{self._name(target_id)} to {other.strain:.0%}: the more used of the two is {relief.gain:.1%} less so then"
        )
        return Reason("node.strained", told, self._name(seat.node_id))

    # -- parts ---------------------------------------------------------------------------------------------

    def _take(
        self, seat: Seat, target_id: str, why: Why, reasons: tuple[Reason, ...], price: Price, change: Standing
    ) -> None:
        before, gain = self._score(), self._gain(seat, target_id)
        self._company.move(seat, target_id)
        self._uses.move(seat, target_id)
        self._standing = self._standing.plus(change)
        self._promised.append((seat, target_id))
        self._free -= 1
        self._moves.append(
            Move(
                vm_id=seat.vm_id,
                vm_name=seat.vm_name,
                source_id=seat.node_id,
                source=self._name(seat.node_id),
                target_id=target_id,
                target=self._name(target_id),
                why=why,
                reasons=reasons,
                price=price,
                gain=gain,
                before=before,
                after=self._score(),
            )
        )

    def _gain(self, seat: Seat, target_id: str) -> float:
        known = all(post is not None and post.node.facts for post in map(self._posts.get, (seat.node_id, target_id)))
        return self._uses.relief(seat, target_id).gain if known else 0.0

    def _has_moved(self, seat: Seat) -> bool:
        return any(moved is seat for moved, _ in self._promised)

    def _may_move(self, seat: Seat, wanted: Reason) -> bool:
        """Whether it may be moved at all now; else it is told what it would be moved for, and why it is not."""
        if self._has_moved(seat):
            return False
        if seat.held is not None:
            told = f"{seat.vm_name} is not moved ({wanted.message}): {seat.held.message}"
            self._tell(Reason(seat.held.code, told, seat.vm_name, seat.held.remedy))
        return seat.held is None

    def _able(self, seat: Seat) -> list[str]:
        """Where it can go, the best for it first, with all moves so far under way."""
        draft = self._draft()
        draft.without(seat.vm_id)
        return [one for one in draft.able(seat.need) if one != seat.node_id]

    def _draft(self) -> Draft:
        draft = self._scene.draft()
        for seat, target_id in self._promised:
            draft.promise(seat.need, target_id)
        return draft

    def _paying(self, seat: Seat, target_id: str, effect: float) -> Price | None:
        """The price, if the move is worth it. effect: the part of it that helps."""
        price = self._price(seat, target_id)
        bound_s = self._settings.pays_within_s * effect
        if price is None or price_s(price) <= bound_s:
            return price
        told = (
            f"moving {seat.vm_name} to {self._name(target_id)} would cost {price_s(price):.0f} s "
            f"({price.total_s:.0f} s and {price.downtime_s:.1f} s of standstill), which pays up to {bound_s:.0f} s"
        )
        self._tell(Reason("move.does_not_pay", told, seat.vm_name, "novacron balancer set --pays-within"))
        return None

    def _price(self, seat: Seat, target_id: str) -> Price | None:
        """What the move costs; None: it cannot be made, or enough were looked at."""
        if self._priced >= MOST_PRICED:
            return None
        self._priced += 1
        price = self._pricing(seat.vm_id, target_id)
        if isinstance(price, Price):
            return price
        why = price[0] if price else Reason("move.refused", "it cannot be moved")
        told = f"{seat.vm_name} cannot go to {self._name(target_id)}: {why.message}"
        self._tell(Reason(why.code, told, seat.vm_name, why.remedy))
        return None

    def _no_target(self, seat: Seat, wanted: str) -> None:
        told = f"{seat.vm_name} finds no other node ({wanted})"
        self._tell(Reason("balance.no_target", told, seat.vm_name, f"novacron vm placement {seat.vm_name}"))

    def _tell(self, reason: Reason) -> None:
        if len(self._told) < MOST_TOLD:
            self._told.setdefault((reason.code, reason.subject), reason)

    def _name(self, node_id: str) -> str:
        post = self._posts.get(node_id)
        return post.node.name if post else node_id
