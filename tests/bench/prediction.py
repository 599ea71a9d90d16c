"""The prediction's error over varied moves: memory in use, write rate, bandwidth cap and strategy all differ.

The cluster has moved nothing when it begins: the first moves are predicted from defaults, later ones from what came
before. What counts is the error that stays on each record: predicted total time against the one measured.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
from typing import NamedTuple

from novacron.client import migrations
from novacron.lab.failure import LabFailed
from novacron.lab.lab import Lab
from novacron.lab.network import Fabric
from novacron.lab.screen import Screen
from tests.bench.guests import Guest, a_lab
from tests.bench.rows import Row, spread

MIB = 1 << 20
MACHINES = ((256, 24), (512, 96), (768, 320))
"""Memory, and the working set that is in use of it, in MiB."""
RATES = (0, 4, 16)  # MiB/s
CAPS = (0, 96, 32)  # MiB/s; 0: none
WAYS = (("live", None), ("live", "precopy"), ("live", "hybrid"), ("live", "postcopy"), ("warm", None))
SETTLE_S = 1.0
MOVES_A_ROUND = 4
GOAL_PERCENT = 20.0


class Scene(NamedTuple):
    """One move to be made. machine: its place in MACHINES; rates in MiB/s."""

    machine: int
    dirty: int
    cap: int
    kind: str
    strategy: str | None


class Predicted(NamedTuple):
    """One move, and what had been promised of it."""

    scene: Scene
    record: migrations.Migration
    measured: migrations.Measurement

    @property
    def total_off_percent(self) -> float:
        error = self.record.prediction_error
        assert error is not None
        assert error.total_percent is not None
        return abs(error.total_percent)


def scenes(count: int, seed: int = 1) -> list[Scene]:
    """So many, all different while there are any left, each machine as often as the others."""
    dice = random.Random(seed)
    by_machine = []
    for machine in range(len(MACHINES)):
        every = [
            Scene(machine, dirty, cap, kind, strategy)
            for dirty, cap, (kind, strategy) in itertools.product(RATES, CAPS, WAYS)
        ]
        dice.shuffle(every)
        by_machine.append(itertools.cycle(every))
    turns = itertools.cycle(by_machine)
    return [next(next(turns)) for _ in range(count)]


async def measure(count: int, screen: Screen) -> list[Predicted]:
    """All moves in order."""
    found = []
    async with a_lab(screen) as (lab, fabric, _):
        guests = [await _guest(lab, fabric, number) for number in range(len(MACHINES))]
        for scene in scenes(count):
            found.append(await _move(lab, guests[scene.machine], scene))
            screen.say(_sentence(found[-1]))
    return found


async def _guest(lab: Lab, fabric: Fabric, number: int) -> Guest:
    memory_mib, working_set_mib = MACHINES[number]
    guest = await Guest.boot(lab, fabric, number, memory_mib)
    await guest.ask(f"dirty 1 {working_set_mib}")  # it holds it from now on
    await guest.ask("dirty 0")
    await guest.rest()
    return guest


async def _move(lab: Lab, guest: Guest, scene: Scene) -> Predicted:
    await guest.wake()
    try:
        if scene.dirty:
            await guest.ask(f"dirty {scene.dirty} {MACHINES[scene.machine][1]}")
        await asyncio.sleep(SETTLE_S)  # what is measured needs a past: it has written for a while
        wish = migrations.MigrationCreate(
            vm=guest.vm.id, target_node=guest.other_node, kind=scene.kind, strategy=scene.strategy,
            bandwidth_bytes_per_s=scene.cap * MIB, may_pause=True, measure=True,
        )  # fmt: skip
        plan = await lab.client.do(migrations.plan(wish))
        record = await guest.move(wish)  # from the measurement that the plan was made from
        if plan.measured is None or record.prediction_error is None:
            raise LabFailed.because(f"nothing was measured or predicted: {plan.note}")
        await guest.ask("dirty 0")
        if await guest.ask("check") != "0":
            raise LabFailed.because("the guest was damaged")
        return Predicted(scene, record, plan.measured)
    finally:
        await guest.rest()


def _sentence(one: Predicted) -> str:
    record, scene = one.record, one.scene
    predicted, total_ms = record.predicted, record.figures.total_ms or 0.0
    expected_ms = predicted.total_ms.expected if predicted else 0.0
    memory_mib, in_use_mib = MACHINES[scene.machine]
    return (
        f"{memory_mib}/{in_use_mib} MiB, writes {scene.dirty}, cap {scene.cap}, {record.kind} {record.strategy}: "
        f"predicted {expected_ms:.0f} ms, took {total_ms:.0f} ms: off by {one.total_off_percent:.0f} %"
    )


def rows(found: list[Predicted]) -> list[Row]:
    """The error of the total time, and of the strategies apart."""
    off = [one.total_off_percent for one in found]
    by_way: dict[str, list[float]] = {}
    for one in found:
        way = one.record.strategy if one.record.kind == "live" else one.record.kind
        by_way.setdefault(way, []).append(one.total_off_percent)
    apart = ", ".join(f"{way} {statistics.median(errors):.0f} %" for way, errors in sorted(by_way.items()))
    return [
        Row(
            f"prediction error of the total time, {len(off)} varied moves",
            f"median ≤ {GOAL_PERCENT:.0f} %",
            "-",
            f"{spread(off)} % ({apart})",
            statistics.median(off) <= GOAL_PERCENT,
            "predicts nothing",
        )
    ]
