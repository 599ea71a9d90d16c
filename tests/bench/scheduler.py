"""How fast VMs are placed: one alone, and in batches, on 100 to 5,000 nodes. `make bench-scheduler` runs it.

Every filter is on: what hypervisors offer, pinned CPU and machine type, a bridge, overlay networks, two pools with
their room, node labels, taints, memory, CPU, and rules between VMs, hard and soft, over nodes and over zones. The floor
is a bare NumPy argmax over as many nodes; beside it stands the least any scheduler must do: add up the weighted
columns, leave out who cannot, take the best. All take turns, round by round, so that a busy neighbour hurts all.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from novacron.control.scheduler.draft import Draft
from novacron.control.scheduler.fleet import Claim, Fleet, Lot, Occupant, PoolSeen
from novacron.control.scheduler.placement import choose
from novacron.control.scheduler.snapshot import Candidate, DiskNeed, Limits, Need, PoolNeed
from novacron.control.scheduler.tenants import held_of
from novacron.model.node import Accelerator, DriverFacts, Node, NodeFacts, NodeState
from novacron.model.placement import NodeRule, PlacementWishes, RuleKind, Taint, Toleration, VmRule
from tests.bench.plot import curves
from tests.bench.records import NOW
from tests.bench.rows import Row, markdown, p99, ratios, spread

SIZES = (100, 200, 500, 1000, 2000, 5000)
AT = 1000  # nodes, for the rows
APPS = 50
VMS_A_NODE = 20
BATCH = 1000
ALIKE = 200
ALONE = 50
PLACEMENTS_PER_S, ONE_MS = 10_000.0, 5.0
LIMITS = Limits()
GIB = 1 << 30


def a_node(number: int, rng: random.Random) -> Node:
    """As a real one describes itself: some hundred things it can do."""
    driver = DriverFacts(
        name="qemu",
        version="7.2",
        features=("tpm", "secure-boot", *(f"feature-{one}" for one in range(10))),
        machine_types=tuple(f"pc-q35-{one}" for one in range(40)),
        default_machine_types={"q35": "pc-q35-39", "microvm": "microvm"},
        cpu_models=tuple(f"model-{one}" for one in range(rng.choice((60, 80)))),
        accelerator=Accelerator(name="kvm", reason="it ran"),
    )
    facts = NodeFacts(
        hostname=f"host-{number}",
        kernel="6.1",
        architecture="x86_64",
        boot_id="b",
        cpu_model="any",
        cpu_flags=(),
        cpu_count=rng.choice((32, 64, 128)),
        memory_mib=rng.choice((256, 512, 1024)) << 10,
        agent_version="0",
        pool_ids=("default",),
        bridges=("br0", f"br-{number % 20}"),
        drivers=(driver,),
        tunnel_address="192.0.2.1",
        abilities=("overlay",),
    )
    return Node(
        id=f"id-{number:05}",
        name=f"node-{number:05}",
        state=NodeState.SUSPECT if number % 50 == 7 else NodeState.UP,
        created_at=NOW,
        updated_at=NOW,
        state_since=NOW,
        labels={"zone": f"zone-{number % 10}", "disk": rng.choice(("ssd", "ssd", "hdd"))},
        cordoned=number % 50 == 9,
        facts=facts,
        taints=(Taint(key="gpu", value=str(number % 3)),) if number % 10 == 3 else (),
    )


def a_need(app: int, rng: random.Random) -> Need:
    """With every filter on."""
    labels = {"app": f"app-{app}", "tier": "web"}
    rules = (
        VmRule(kind=RuleKind.APART, labels={"app": f"app-{(app + APPS // 2) % APPS}", "tier": "web"}),
        VmRule(kind=RuleKind.SPREAD, labels={"app": labels["app"]}, over="zone", hard=False),
    )
    nodes = (NodeRule(labels={"disk": "ssd"}), NodeRule(labels={"zone": f"zone-{app % 10}"}, hard=False))
    return Need(
        memory_mib=rng.choice((1024, 2048, 4096)),
        vcpus=rng.choice((1, 2, 4)),
        features=("tpm", "secure-boot"),
        machine_type="pc-q35-30",
        cpu_model="model-30",
        accelerator="kvm",
        pool_id="default",
        pools=(PoolNeed(id="local", name="local"), PoolNeed(id="shared", name="shared")),
        bridges=("br0",),
        overlay=True,
        disks=tuple(DiskNeed(pool_id=one, pool_name=one, size_bytes=10 * GIB) for one in ("local", "shared")),
        labels=labels,
        wishes=PlacementWishes(tolerations=(Toleration(key="gpu", value="1"),), vm_rules=rules, node_rules=nodes),
    )


def a_fleet(size: int) -> tuple[Fleet, list[Node], float]:
    """With VMs on all nodes; and the microseconds that taking in one change of a VM took."""
    rng = random.Random(size)
    fleet, nodes = Fleet(LIMITS), [a_node(number, rng) for number in range(size)]
    for node in nodes:
        fleet.put_node(node)
    reached = {node.id: "" if number % 20 else "it is not mounted" for number, node in enumerate(nodes)}
    for pool_id in ("local", "shared"):
        sizes = dict.fromkeys(reached, (1 << 50) if pool_id == "shared" else 20_000 * GIB)
        fleet.put_pool(pool_id, PoolSeen(shared=pool_id == "shared", reached=reached, size_bytes=sizes))
    began, changes = time.perf_counter(), size * VMS_A_NODE
    for number in range(changes):
        need, node_id = a_need(rng.randrange(APPS), rng), nodes[number % size].id
        claim = Claim(node_id=node_id, memory_mib=need.memory_mib, vcpus=1, owned=True)
        held = held_of(need.wishes.vm_rules) if number % 10 == 0 else frozenset()
        fleet.put_vm(f"vm-{number}", Occupant(claims=(claim,), labels=need.labels, held=held))
        fleet.put_volume(f"disk-{number}", (Lot(pool_id="local", node_id=node_id, size_bytes=10 * GIB),))
    return fleet, nodes, (time.perf_counter() - began) / changes * 1e6


class Contest:
    """Everything measured on one number of nodes."""

    def __init__(self, size: int) -> None:
        self.fleet, self.nodes, self.change_us = a_fleet(size)
        rng = random.Random(2)
        self._needs = [a_need(number % APPS, rng) for number in range(BATCH)]
        self._matrix = np.random.default_rng(3).random((5, size))
        self._able = self._matrix[0] > 0.1
        self._weights = np.ones(5)
        self.cpu_us = 0.0  # of a placement, in the last batch

    def floor_us(self) -> float:
        """Of one bare argmax."""
        row, began = self._matrix[0], time.perf_counter()
        for _ in range(BATCH):
            row.argmax()
        return (time.perf_counter() - began) / BATCH * 1e6

    def least_us(self) -> float:
        """Of one product, mask and argmax."""
        began = time.perf_counter()
        for _ in range(BATCH):
            np.where(self._able, self._weights @ self._matrix, -np.inf).argmax()
        return (time.perf_counter() - began) / BATCH * 1e6

    def batch_us(self) -> float:
        """Of one placement in a batch of VMs of 50 apps and nine sizes, all of them promised."""
        return self._place(self._needs)

    def alike_us(self) -> float:
        """The same of VMs that are all alike, as of one template."""
        return self._place(self._needs[:1] * ALIKE)

    def _place(self, needs: Sequence[Need]) -> float:
        draft, began, cpu = Draft(self.fleet), time.perf_counter(), time.thread_time()
        for need in needs:
            node_id = draft.choose(need)
            if node_id is None:
                raise SystemExit("the bench's fleet is full: give it less")
            draft.promise(need, node_id)
        self.cpu_us = (time.thread_time() - cpu) / len(needs) * 1e6
        return (time.perf_counter() - began) / len(needs) * 1e6

    def alone_ms(self) -> list[float]:
        """Of placements that each come alone, after a node and a VM have changed."""
        took = []
        for number, need in enumerate(self._needs[:ALONE]):
            node = self.nodes[number % len(self.nodes)]
            changed = msgspec.structs.replace(node, labels=node.labels | {"round": str(number)})
            began = time.perf_counter()
            self.fleet.put_node(changed)
            self.fleet.put_volume("disk-0", (Lot(pool_id="local", node_id=node.id, size_bytes=number),))
            Draft(self.fleet).choose(need)
            took.append((time.perf_counter() - began) * 1e3)
        return took

    def node_by_node_ms(self) -> float:
        """Of one decision made as for people, node after node."""
        seen = [
            Candidate(node=node, pools={"local": "", "shared": ""}, pool_room_bytes={"local": 1 << 50})
            for node in self.nodes
        ]
        began = time.perf_counter()
        choose(Draft(self.fleet).with_company(self._needs[0]), seen, LIMITS)
        return (time.perf_counter() - began) * 1e3


def measure(contest: Contest, rounds: int) -> dict[str, list[float]]:
    """Round by round, each contestant in turn."""
    contestants: dict[str, Callable[[], float]] = {
        "floor_us": contest.floor_us,
        "least_us": contest.least_us,
        "batch_us": contest.batch_us,
        "batch_cpu_us": lambda: contest.cpu_us,
        "alike_us": contest.alike_us,
        "alone_ms": lambda: statistics.median(alone[-1]),
        "alone_p99_ms": lambda: p99(alone[-1]),
        "node_by_node_ms": contest.node_by_node_ms,
    }
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    alone: list[list[float]] = []
    contest.batch_us()  # fill caches before the first round
    for _ in range(rounds):
        alone.append(contest.alone_ms())
        for name, one in contestants.items():
            figures[name].append(one())
    return figures


def rows(found: dict[int, dict[str, list[float]]]) -> list[Row]:
    """For SPECIFICATION.md."""
    here, first, last = found[AT], min(found), max(found)
    per_s, alike = ([1e6 / one for one in here[name]] for name in ("batch_us", "alike_us"))
    floor = statistics.median(here["floor_us"])
    growth = statistics.median(ratios(found[last]["batch_us"], found[first]["batch_us"]))
    alone_growth = statistics.median(ratios(found[last]["alone_ms"], found[first]["alone_ms"]))
    more = last / first
    by_floor, by_least = ratios(here["batch_us"], here["floor_us"]), ratios(here["batch_us"], here["least_us"])
    tail = statistics.median(here["alone_p99_ms"])
    return [
        Row(
            f"placements/s in batches of {BATCH}, {AT} nodes",
            f">= {PLACEMENTS_PER_S:g}",
            f"{1e6 / floor:.0f} argmax/s",
            spread(per_s),
            statistics.median(per_s) >= PLACEMENTS_PER_S,
        ),
        Row(
            "the same, VMs alike",
            f">= {PLACEMENTS_PER_S:g}",
            "the same",
            spread(alike),
            statistics.median(alike) >= PLACEMENTS_PER_S,
        ),
        Row("the first, processor time of one, us", "-", f"{floor:.2f}", spread(here["batch_cpu_us"], digits=1)),
        Row("the first, times a bare argmax", "-", "1", spread(by_floor, digits=1)),
        Row("the first, times product, mask and argmax", "-", "1", spread(by_least, digits=1)),
        Row(f"one alone, {AT} nodes, ms: median; p99", f"<= {ONE_MS:g}", "-",
            f"{spread(here['alone_ms'], digits=2)}; {tail:.2f}", tail <= ONE_MS),
        Row(f"cost at {last} nodes by that at {first}: batch; alone", f"<= {more:g}", "-",
            f"{growth:.1f}; {alone_growth:.1f}", max(growth, alone_growth) <= more),
    ]  # fmt: skip


def table(found: dict[int, dict[str, list[float]]], change_us: dict[int, float]) -> list[str]:
    """What each number of nodes costs."""
    shown = (
        ("batch us", "batch_us", 1), ("CPU us", "batch_cpu_us", 1), ("alike us", "alike_us", 1),
        ("floor us", "floor_us", 2), ("least us", "least_us", 2), ("alone ms", "alone_ms", 3),
        ("node by node ms", "node_by_node_ms", 1),
    )  # fmt: skip
    lines = [
        f"{'nodes':>6}{'placements/s':>14}" + "".join(f"{title:>17}" for title, _, _ in shown) + f"{'a change us':>13}"
    ]
    for size, figures in found.items():
        middle = {name: statistics.median(values) for name, values in figures.items()}
        cells = "".join(f"{middle[name]:17.{digits}f}" for _, name, digits in shown)
        lines.append(f"{size:6}{1e6 / middle['batch_us']:14.0f}{cells}{change_us[size]:13.1f}")
    return lines


def plot(found: dict[int, dict[str, list[float]]]) -> list[str]:
    """How a placement's cost grows with the nodes, in a batch and alone, beside the bare argmax."""
    middle = {
        name: [statistics.median(one[key]) * scale for one in found.values()]
        for name, key, scale in (("batch", "batch_us", 1), ("one alone", "alone_ms", 1000), ("argmax", "floor_us", 1))
    }
    return curves(list(found), middle, "us")


def main() -> int:
    """Print a table, a plot, the rows and, as the last line, one JSON object; 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    found, change_us = dict[int, dict[str, list[float]]](), dict[int, float]()
    for size in SIZES:
        contest = Contest(size)
        found[size], change_us[size] = measure(contest, asked.rounds), contest.change_us
    told = rows(found)
    print("\n".join([*table(found, change_us), "", *plot(found), "", *markdown(told)]))
    medians = {size: {name: statistics.median(values) for name, values in one.items()} for size, one in found.items()}
    print(json.dumps(medians))
    return int(any(row.met is False for row in told))


if __name__ == "__main__":
    sys.exit(main())
