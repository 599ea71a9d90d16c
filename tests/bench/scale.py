"""How NovaCron scales: 1,000 simulated agents, 100,000 VMs, one real server, a real store. `make bench-scale` runs it.

    python -m tests.bench.scale [--nodes N] [--vms N] [--store etcd|sqlite] [--seconds S] [--only PART ...] ...

The server is a process as `novacron server run` starts it, the store one etcd member (or SQLite), the agents another
process (tests.bench.scale_agents) whose lines, hellos, reports, joins and heartbeats are real; only the machines are
not. The VMs, with a volume each, are written through the store before the server starts, in the shape in which the API
writes them (made one by one through the API they would take hours). Beside a figure stands its floor: what the same
costs without a server (`floor`). The last line is one JSON object with all figures
and goals; 1 is returned when a goal was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from novacron.config import ServerConfig
from novacron.control import premises
from novacron.control.answers import cursor_after
from novacron.control.store import bounds
from novacron.control.store.base import Store
from novacron.control.store.etcd import EtcdStore
from novacron.control.store.etcd_line import LONG_ATTEMPT_S, RANGE
from novacron.control.store.etcd_words_pb2 import RangeRequest
from novacron.control.store.kinds import IMAGES, KINDS, NETWORKS, VMS, VOLUMES
from novacron.control.store.records import Write, create
from novacron.control.store.sqlite import SqliteStore
from novacron.model.node import NodeState
from novacron.wire.agent import PATH
from tests.bench import scale_fleet as fleet
from tests.bench.rows import p99
from tests.bench.scale_fleet import Plan
from tests.bench.scale_reader import Reader
from tests.bench.scale_server import Process, Server, server
from tests.etcd_members import members, opened

GOALS = {
    "single_p99_ms": 100.0,
    "page_p99_ms": 100.0,
    "filtered_page_p99_ms": 100.0,
    "full_list_filtered_s": 1.0,
    "failover_less_fencing_s": 3.0,
    "cache_warm_s": 15.0,
}
"""At most."""

PARTS = ("idle", "reads", "lists", "births", "failover")
BIRTHS = 50
"""Of what is measured once the server serves, each alone if wanted; how long that took is always measured."""

PAGE = 100
STORE_PAGE = 10_000
TOGETHER = 250  # VMs in one transaction while they are written
READS_PER_S = 60.0
UP_WITHIN_S = 600.0
MOVED_WITHIN_S = 180.0


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    nodes: int
    vms: int
    store: str
    seconds: float
    protected: int
    heartbeat_s: float
    profile: Path | None = None
    parts: tuple[str, ...] = PARTS


class Agents(Process):
    """The process of the simulated agents."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__(process.pid)
        self._process = process

    def ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def told(self, key: str, within_s: float) -> dict[str, Any]:
        """The next that it says of that; what it says of other things meanwhile is dropped."""
        assert self._process.stdout is not None
        async with asyncio.timeout(within_s):
            while line := await self._process.stdout.readline():
                said: dict[str, Any] = json.loads(line)
                if key in said:
                    return said
        raise SystemExit("the agents' process ended")

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


@contextlib.asynccontextmanager
async def agents(plan: Plan, served: Server) -> AsyncIterator[Agents]:
    """All of them, on their way to the server; gone afterwards."""
    pipe = asyncio.subprocess.PIPE
    url = f"ws://127.0.0.1:{served.port}{PATH}"
    command = [sys.executable, "-m", "tests.bench.scale_agents", url]
    made = Agents(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))
    try:
        made.ask(json.dumps({"secret": served.secret, "plan": msgspec.to_builtins(plan)}))
        yield made
    finally:
        await made.end()


# -- before ------------------------------------------------------------------------------------------------------------


async def seed(store: Store, plan: Plan) -> None:
    """Everything but the nodes, which make their own records when they come."""

    def writes() -> Iterator[Write]:
        yield create(IMAGES, fleet.image())
        for number in plan.networks():
            yield create(NETWORKS, fleet.network(number))
        for number in range(plan.vms):
            yield create(VMS, fleet.vm(plan, number))
            yield create(VOLUMES, fleet.volume(plan, number))

    batch: list[Write] = []
    for write in writes():
        batch.append(write)
        if len(batch) == 2 * TOGETHER:
            await _commit(store, batch)
            batch = []
    await _commit(store, batch)


async def _commit(store: Store, batch: list[Write]) -> None:
    await store.commit([op for one in batch for op in one.ops], [expect for one in batch for expect in one.expect])


@contextlib.asynccontextmanager
async def stored(
    asked: Asked, directory: Path, plan: Plan
) -> AsyncIterator[tuple[str, Process | None, dict[str, float]]]:
    """A store with all records in it: the server's flag for it, the process behind it, and what it took."""
    began_s = time.monotonic()
    if asked.store == "sqlite":
        store = await SqliteStore.open(directory / "data" / "store.db", durable=False)
        await seed(store, plan)
        await store.close()
        yield "", None, {"records_written_s": time.monotonic() - began_s}
        return
    with members(directory / "etcd") as cluster:
        await cluster.up(0)
        async with opened(cluster.address()) as filled:
            await seed(filled, plan)
            took = {"records_written_s": time.monotonic() - began_s, "floor_read_s": await bare_read_s(filled)}
        yield f"etcd://127.0.0.1:{cluster.ports[0]}/novacron", Process(cluster.pid(0)), took


async def bare_read_s(store: EtcdStore) -> float:
    """Seconds in which all records come out of etcd, page by page, and nothing is made of them."""
    began_s = time.monotonic()
    for kind in KINDS:
        low, high = store._layout.reach(bounds.range_of(kind.prefix))
        more = True
        while more:
            question = RangeRequest(key=low, range_end=high, limit=STORE_PAGE)
            answer, _ = await store._line.ask(RANGE, question, LONG_ATTEMPT_S)
            if more := answer.more:
                low = answer.kvs[-1].key + b"\0"
    return time.monotonic() - began_s


# -- reading -----------------------------------------------------------------------------------------------------------


async def paced(served: Server, path: Callable[[], str], per_s: float, seconds: float) -> list[float]:
    """How long each read took in ms, counted from when it was due: who waits in line is slow, too."""
    took_ms: list[float] = []

    async def ask(due_s: float, reader: Reader) -> None:
        await reader.get(path())
        took_ms.append((time.monotonic() - due_s) * 1e3)

    readers = [Reader(served) for _ in range(8)]
    try:
        waiting: set[asyncio.Task[None]] = set()
        free = asyncio.Queue[Reader]()
        for reader in readers:
            await reader.get("/api/v1/nodes?limit=1")
            free.put_nowait(reader)
        began_s = time.monotonic()
        for number in range(max(1, int(per_s * seconds))):
            due_s = began_s + number / per_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            reader = await free.get()
            task = asyncio.create_task(ask(due_s, reader))
            waiting.add(task)
            task.add_done_callback(lambda done, reader=reader: (waiting.discard(done), free.put_nowait(reader)))  # type: ignore[misc]
        await asyncio.gather(*waiting)
    finally:
        for reader in readers:
            reader.close()
    return took_ms


async def reads(served: Server, plan: Plan, seconds: float) -> dict[str, float]:
    """p50 and p99 of each kind of read, while nodes report and heartbeat."""
    rng = random.Random(1)
    starts = max(1, plan.vms - PAGE)
    paths: dict[str, Callable[[], str]] = {
        "single": lambda: f"/api/v1/vms/{fleet.vm_id(rng.randrange(plan.vms))}",
        "page": lambda: f"/api/v1/vms?limit={PAGE}&cursor={cursor_after(fleet.vm_id(rng.randrange(starts)))}",
        "filtered_page": lambda: f"/api/v1/vms?limit={PAGE}&state=running&label=tier%3Dt{rng.randrange(fleet.TIERS)}",
    }
    found: dict[str, float] = {}
    measured = await asyncio.gather(*(paced(served, path, READS_PER_S / 3, seconds) for path in paths.values()))
    for name, took_ms in zip(paths, measured, strict=True):
        found[f"{name}_p50_ms"] = sorted(took_ms)[len(took_ms) // 2]
        found[f"{name}_p99_ms"] = p99(took_ms)
    return found


async def listed(served: Server, path: str) -> tuple[float, int]:
    """Seconds until every page of a list was read, and how many records it has."""
    reader, count, cursor = Reader(served), 0, ""
    began_s = time.monotonic()
    while True:
        answer = json.loads(await reader.get(path + (f"&cursor={cursor}" if cursor else "")))
        count += len(answer["items"])
        cursor = answer["next_cursor"]
        if not cursor:
            reader.close()
            return time.monotonic() - began_s, count


async def lists(served: Server) -> dict[str, float]:
    """Whole lists: by labels, by a state that none is in (every VM is looked at), and all there is."""
    found: dict[str, float] = {}
    by_labels, by_state = "&state=running&label=tier%3Dt7&label=stage%3Dtest", "&state=error"
    for name, wish in (("full_list_filtered", by_labels), ("full_list_none", by_state), ("all_pages", "")):
        found[f"{name}_s"], found[f"{name}_vms"] = await listed(served, f"/api/v1/vms?limit=500{wish}")
    return found


async def births(served: Server) -> dict[str, float]:
    """Until a VM with a card on an overlay network is recorded and placed, one after the other."""
    reader, took_ms = Reader(served), list[float]()
    for number in range(BIRTHS):
        nic = {"network": "overlay", "net": "net-0000"}
        wish = {"name": f"born-{number}", "image": "debian", "desired": "stopped", "memory_mib": 64, "nics": [nic]}
        began_s = time.monotonic()
        await reader.ask("POST", "/api/v1/vms", json.dumps(wish).encode())
        took_ms.append((time.monotonic() - began_s) * 1e3)
    reader.close()
    return {"create_p50_ms": statistics.median(took_ms), "create_worst_ms": max(took_ms)}


# -- a node fails ------------------------------------------------------------------------------------------------------


async def failover(served: Server, running: Agents, plan: Plan) -> dict[str, float]:
    """Node 0 falls silent: when it is fenced, and when the last of its protected VMs was ordered to start elsewhere."""
    lost = {fleet.vm_id(number) for number in plan.on_node(0) if plan.protects(number)}
    fenced = served.when("a node is fenced")
    began_s = time.monotonic()
    running.ask("kill 0")
    last_s, expected = began_s, len(lost)
    while lost:
        said = await running.told("started", MOVED_WITHIN_S)
        lost.discard(said["started"])
        last_s = said["at_s"]
    fenced_s = await fenced
    return {
        "failover_vms": expected,
        "silence_to_fence_s": fenced_s - began_s,
        "failover_less_fencing_s": last_s - fenced_s,
    }


# -- all of it ---------------------------------------------------------------------------------------------------------


async def measure(asked: Asked, directory: Path) -> dict[str, Any]:
    """All figures, from an empty directory to one that may be deleted."""
    config = ServerConfig(data_dir=directory / "data", pool_dir=directory / "pool")
    _, pool_id = premises.prepare(config)
    plan = Plan(nodes=asked.nodes, vms=asked.vms, pool_id=pool_id, protected=asked.protected)
    async with stored(asked, directory, plan) as (flag, behind, took):
        found: dict[str, Any] = {"nodes": plan.nodes, "vms": plan.vms, "store": asked.store, **took}
        async with server(config.data_dir, config.pool_dir, flag, asked.profile, asked.heartbeat_s) as served:
            found["cache_warm_s"] = served.ready_s
            found |= {"cache_warm_server_cpu_s": served.cpu_s(), "cache_warm_server_rss_mib": served.rss_mib()}
            async with agents(plan, served) as running:
                began_s = time.monotonic()
                await running.told("up", UP_WITHIN_S)
                found["all_joined_s"] = time.monotonic() - began_s
                await _nodes_up(served, plan)
                found |= await under_load(asked, plan, served, running, behind)
            found |= {"server_rss_mib": served.rss_mib(), "server_cpu_s": served.cpu_s()}
            if behind is not None:
                found |= {"etcd_rss_mib": behind.rss_mib(), "etcd_cpu_s": behind.cpu_s()}
    return found


async def _nodes_up(served: Server, plan: Plan) -> None:
    """Wait until every node is said to be up."""
    async with asyncio.timeout(UP_WITHIN_S):
        while (await listed(served, f"/api/v1/nodes?limit=500&state={NodeState.UP.value}"))[1] < plan.nodes:
            await asyncio.sleep(0.2)


async def under_load(
    asked: Asked, plan: Plan, served: Server, running: Agents, behind: Process | None
) -> dict[str, Any]:
    """What is measured while all nodes report and heartbeat."""
    running.ask("figures")
    before, began_s = await running.told("beats", 60), time.monotonic()
    found: dict[str, Any] = {}
    if "idle" in asked.parts:
        processes = {"server": served, "agents": running, **({"etcd": behind} if behind else {})}
        found |= await idle(asked.seconds, processes)
    if "reads" in asked.parts:
        cpu_s = served.cpu_s()
        found |= await reads(served, plan, asked.seconds)
        found["reads_server_cpu_percent"] = 100 * (served.cpu_s() - cpu_s) / asked.seconds
    running.ask("figures")
    after = await running.told("beats", 60)
    found["beats_per_s"] = (after["beats"] - before["beats"]) / (time.monotonic() - began_s)
    found |= {"worst_beat_ms": after["worst_beat_s"] * 1e3, "beats_refused": after["refused"]}
    if "lists" in asked.parts:
        found |= await lists(served)
    if "births" in asked.parts:
        found |= await births(served)
    if "failover" in asked.parts:
        found |= await failover(served, running, plan)
    running.ask("figures")
    found["lines_broken"] = (await running.told("beats", 60))["broken"]
    found["agents_rss_mib"] = running.rss_mib()
    return found


async def idle(seconds: float, processes: Mapping[str, Process]) -> dict[str, float]:
    """What each process costs while nobody asks for anything."""
    began_s, cpu_s = time.monotonic(), {name: one.cpu_s() for name, one in processes.items()}
    await asyncio.sleep(seconds)
    elapsed_s = time.monotonic() - began_s
    return {
        f"idle_{name}_cpu_percent": 100 * (one.cpu_s() - cpu_s[name]) / elapsed_s for name, one in processes.items()
    }


def main() -> int:
    """Print the figures, and as the last line all of them as one JSON object; 1 when a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--vms", type=int, default=100_000)
    parser.add_argument("--store", choices=("etcd", "sqlite"), default="etcd")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement under load")
    parser.add_argument("--protected", type=int, default=100, help="percent of VMs to be restarted elsewhere")
    parser.add_argument("--heartbeat-s", type=float, default=2.0, help="all times of ownership go with it")
    parser.add_argument("--profile", type=Path, help="write the server's profile there")
    parser.add_argument(
        "--only", action="append", choices=PARTS, help="of what is measured while it serves; repeatable"
    )
    flags = vars(parser.parse_args())
    asked = Asked(parts=tuple(flags.pop("only") or PARTS), **flags)
    with tempfile.TemporaryDirectory() as made, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure(asked, Path(made)))
    missed = {name for name, goal in GOALS.items() if found.get(name, 0.0) > goal}
    for name, value in found.items():
        goal = f"  goal <= {GOALS[name]:g}: {'MISSED' if name in missed else 'met'}" if name in GOALS else ""
        print(f"{name:28}{value:>14}{goal}" if isinstance(value, str) else f"{name:28}{value:14.2f}{goal}")
    print(json.dumps(found | {"goals": GOALS, "missed": sorted(missed)}))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
