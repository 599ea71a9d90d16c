"""How events fan out: 1,000 WebSocket clients that hear everything, 500 events a second. `make bench-events` runs it.

    python -m tests.bench.events [--clients N] [--per-s N] [--seconds S] [--profile FILE]

One real server on one etcd member. Another writer of the same store changes VM records, ten in a transaction, each with
the time at which its transaction was begun; the clients (tests.bench.event_clients) compare that with when they hear of
it. So the figure is from before the commit (how long commits took is shown) to after the client's read, through store,
watch, cache and fan-out. Then the same again with one client more that has subscribed and reads nothing. Last the
floor: tests.bench.event_floor, a bare writer, sends the same bytes as often to the same clients. The last line is one
JSON object; 1 is returned when a goal was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from novacron.config import ServerConfig
from novacron.control import premises
from novacron.control.store.base import Put, Store
from novacron.control.store.kinds import VMS
from tests.bench import scale_fleet as fleet
from tests.bench.event_clients import KEY, masked
from tests.bench.scale import seed
from tests.bench.scale_fleet import Plan
from tests.bench.scale_server import Process, Server, server
from tests.etcd_members import members, opened

GOALS = {"p99_ms": 250.0, "p99_beside_a_slow_reader_ms": 250.0, "missed": 0.0, "missed_beside_a_slow_reader": 0.0}
"""At most."""

CHANGES = 10  # in a transaction
RECORDS = 500
READY_WITHIN_S = 300.0
MAX_LINE_BYTES = 1 << 20

_encode = msgspec.json.Encoder().encode


class Piped(Process):
    """A process that is told lines, and says lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__(process.pid)
        self.process = process

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    async def said(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(READY_WITHIN_S):
            found: dict[str, Any] = json.loads(await self.process.stdout.readline())
        return found


@contextlib.asynccontextmanager
async def piped(module: str, *arguments: str) -> AsyncIterator[Piped]:
    """One that runs; gone afterwards, for it ends when it is told nothing more."""
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", module, *arguments]
    made = Piped(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=MAX_LINE_BYTES))
    try:
        yield made
    finally:
        assert made.process.stdin is not None
        made.process.stdin.close()
        await made.process.wait()


@contextlib.asynccontextmanager
async def clients(port: int, token: str, count: int) -> AsyncIterator[Piped]:
    """All of them, listening; gone afterwards."""
    async with piped("tests.bench.event_clients", str(port), str(count)) as made:
        made.tell(token)
        await made.said()
        yield made


async def change(store: Store, plan: Plan, per_s: float, seconds: float) -> list[float]:
    """Change records at that rate; how long the commit of each transaction took. What the store cannot keep up with is
    made up for.
    """
    began_s = time.monotonic()
    writing = []
    for number in range(max(1, int(per_s * seconds / CHANGES))):
        await asyncio.sleep(max(0.0, began_s + number * CHANGES / per_s - time.monotonic()))
        writing.append(asyncio.create_task(commit(store, plan, number * CHANGES)))
    return await asyncio.gather(*writing)


async def commit(store: Store, plan: Plan, first: int) -> float:
    """Change some records, from that on; how long it took."""
    began_s = time.monotonic()
    ops = []
    for number in range(first, first + CHANGES):
        vm = msgspec.structs.replace(fleet.vm(plan, number % plan.vms), description=f"at {began_s:.6f}")
        ops.append(Put(VMS.key(vm.id), _encode(vm)))
    await store.commit(ops)
    return time.monotonic() - began_s


@contextlib.contextmanager
def slow_reader(served: Server) -> Iterator[socket.socket]:
    """A client that has subscribed to everything, and reads nothing."""
    with socket.socket() as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.connect(("127.0.0.1", served.port))
        made.sendall(
            "GET /api/v1/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Authorization: Bearer {served.token}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {KEY}\r\n\r\n".encode()
        )
        made.recv(4096)
        made.sendall(masked(0x1, b'{"t":"subscribe"}'))
        yield made


def was_let_go(reader: socket.socket) -> bool:
    """Whether the server has ended the connection of one that did not read."""
    reader.settimeout(5.0)
    try:
        while reader.recv(1 << 20):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


async def turn(store: Store, plan: Plan, asked: argparse.Namespace, hearing: Piped, served: Server) -> dict[str, Any]:
    """One turn of changes, and how they were heard."""
    began_s, cpu_s = time.monotonic(), served.cpu_s()
    commits_s = sorted(await change(store, plan, asked.per_s, asked.seconds))
    made, elapsed_s = len(commits_s) * CHANGES, time.monotonic() - began_s
    hearing.tell(f"figures {made}")
    heard = await hearing.said()
    return heard | {
        "per_s": made / elapsed_s,
        "commit_p99_ms": 1e3 * commits_s[len(commits_s) * 99 // 100],
        "server_cpu_percent": 100 * (served.cpu_s() - cpu_s) / elapsed_s,
        "clients_cpu_percent": 100 * heard["cpu_s"] / elapsed_s,
    }


async def floor(asked: argparse.Namespace, frame: str) -> dict[str, Any]:
    """The same number of frames like that one, from the bare writer to as many of the same clients."""
    async with piped("tests.bench.event_floor") as writer:
        writer.tell(json.dumps(frame))
        port = (await writer.said())["port"]
        async with clients(port, "none", asked.clients) as hearing:
            writer.tell(f"go {asked.seconds} {asked.per_s}")
            written = await writer.said()
            hearing.tell(f"figures {written['events']}")
            heard = await hearing.said()
    return {
        "floor_p50_ms": heard["late_ms"]["p50"],
        "floor_p99_ms": heard["late_ms"]["p99"],
        "floor_missed": heard["missed"],
        "floor_cpu_percent": 100 * written["cpu_s"] / asked.seconds,
        "floor_clients_cpu_percent": 100 * heard["cpu_s"] / asked.seconds,
    }


async def measure(asked: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """All figures, from an empty directory to one that may be deleted."""
    config = ServerConfig(data_dir=directory / "data", pool_dir=directory / "pool")
    _, pool_id = premises.prepare(config)
    plan = Plan(nodes=1, vms=RECORDS, pool_id=pool_id, protected=0)
    with members(directory / "etcd") as cluster:
        await cluster.up(0)
        address = f"etcd://127.0.0.1:{cluster.ports[0]}/novacron"
        async with opened(cluster.address()) as store:
            await seed(store, plan)
            async with (
                server(config.data_dir, config.pool_dir, address, asked.profile) as served,
                clients(served.port, served.token, asked.clients) as hearing,
            ):
                alone = await turn(store, plan, asked, hearing, served)
                with slow_reader(served) as reader:
                    beside = await turn(store, plan, asked, hearing, served)
                    let_go = await asyncio.to_thread(was_let_go, reader)
                rss_mib = served.rss_mib()
    lowest = await floor(asked, alone["frame"])
    return {
        "clients": asked.clients,
        "events_per_s": alone["per_s"],
        "heard_per_s": alone["events"] / asked.seconds,
        "p50_ms": alone["late_ms"]["p50"],
        "p99_ms": alone["late_ms"]["p99"],
        "worst_ms": alone["late_ms"]["p100"],
        "missed": alone["missed"],
        "commit_p99_ms": alone["commit_p99_ms"],
        "p99_beside_a_slow_reader_ms": beside["late_ms"]["p99"],
        "missed_beside_a_slow_reader": beside["missed"],
        "commit_p99_beside_a_slow_reader_ms": beside["commit_p99_ms"],
        "slow_reader_let_go": let_go,
        "lost_clients": beside["lost_clients"],
        "server_cpu_percent": alone["server_cpu_percent"],
        "server_rss_mib": rss_mib,
        "clients_cpu_percent": alone["clients_cpu_percent"],
        "event_bytes": len(alone["frame"]),
        **lowest,
        "p99_per_floor": alone["late_ms"]["p99"] / lowest["floor_p99_ms"],
        "server_cpu_per_floor": alone["server_cpu_percent"] / lowest["floor_cpu_percent"],
    }


def main() -> int:
    """Print the figures, and as the last line all of them as one JSON object; 1 when a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--per-s", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each of the two turns")
    parser.add_argument("--profile", type=Path, help="write the server's profile there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure(asked, Path(made)))
    missed = {name for name, goal in GOALS.items() if found[name] > goal}
    for name, value in found.items():
        goal = f"  goal <= {GOALS[name]:g}: {'MISSED' if name in missed else 'met'}" if name in GOALS else ""
        print(f"{name:34}{value:14.2f}{goal}")
    print(json.dumps(found | {"goals": GOALS, "not_met": sorted(missed)}))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
