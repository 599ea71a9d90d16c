"""How fast the API reads: single VMs and pages of 100, with 5,000 VMs in the store. `make bench-api` runs it.

One server process as it is run for real; this process is the load: keep-alive connections on raw sockets, one
request at a time on each. Kinds of request take turns, a round each; the median round is reported. `CPU us` is what
the server itself spends on one request: how fast it could be, whoever else is busy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop

from novacron.clock import SystemClock
from novacron.control.answers import cursor_after
from novacron.control.store.base import MAX_OPS
from novacron.control.store.kinds import NODES, VMS
from novacron.control.store.records import Records, Write, create
from novacron.control.store.sqlite import SqliteStore
from tests.bench.records import a_node, a_vm

VMS_IN_STORE = 5000
PAGE = 100
READY_WITHIN_S = 30.0
TARGETS = {"single": (3000.0, 25.0), "page": (300.0, 25.0)}  # requests a second at least, p99 in ms at most


class Round(msgspec.Struct, frozen=True):
    """What one round measured."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  # of the server, for each request
    failures: int


class Served(msgspec.Struct, frozen=True):
    """A running server."""

    port: int
    token: str
    pid: int

    def cpu_s(self) -> float:
        """CPU time it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def seed(directory: Path) -> list[str]:
    """Write the store the server will open; the ids of its VMs in order."""
    store = await SqliteStore.open(directory / "store.db", durable=False)
    records = Records(store, SystemClock(), random.Random(1))
    await records.start()
    node = a_node(records.new_id())
    writes: list[Write] = [create(NODES, node)]
    ids = [records.new_id() for _ in range(VMS_IN_STORE)]
    writes += [create(VMS, a_vm(vm_id, f"vm-{number:05}", node.id)) for number, vm_id in enumerate(ids)]
    for first in range(0, len(writes), MAX_OPS // 2):
        await records.commit(*writes[first : first + MAX_OPS // 2])
    await records.stop()
    await store.close()
    return sorted(ids)


async def load(server: Served, path: Callable[[], str], connections: int, seconds: float) -> Round:
    """Ask as fast as answers come, on that many connections."""
    port, token = server.port, server.token
    ends = time.perf_counter() + seconds
    taken_s: list[float] = []
    failures = 0

    async def ask() -> None:
        nonlocal failures
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < ends:
            writer.write(f"GET {path()} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ", 1)[1].split(b"\r", 1)[0])
            await reader.readexactly(length)
            taken_s.append(time.perf_counter() - began)
            failures += not head.startswith(b"HTTP/1.1 200")
        writer.close()

    began, cpu_before_s = time.perf_counter(), server.cpu_s()
    await asyncio.gather(*(ask() for _ in range(connections)))
    elapsed = time.perf_counter() - began
    cuts = statistics.quantiles(taken_s, n=100)
    cpu_us = (server.cpu_s() - cpu_before_s) / len(taken_s) * 1e6
    return Round(len(taken_s) / elapsed, cuts[49] * 1e3, cuts[98] * 1e3, cpu_us, failures)


async def measure(rounds: int, seconds: float, connections: int) -> dict[str, dict[str, float]]:
    """All rounds against a server started for them, and ended again."""
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "data"
        data.mkdir(mode=0o700)
        ids = await seed(data)
        command = [sys.executable, "-m", "novacron.control", "--data-dir", str(data), "--port", "0"]
        server = await asyncio.create_subprocess_exec(
            *command, "--pool-dir", str(Path(directory) / "pool"), stdout=asyncio.subprocess.PIPE
        )
        try:
            served = Served(await _port_of(server), (data / "admin.token").read_text().strip(), server.pid)
            return await _rounds(served, ids, rounds, seconds, connections)
        finally:
            server.send_signal(signal.SIGTERM)
            await server.wait()


async def _port_of(server: asyncio.subprocess.Process) -> int:
    assert server.stdout is not None
    async with asyncio.timeout(READY_WITHIN_S):
        while line := (await server.stdout.readline()).decode():
            if line.startswith("ready "):
                return int(line.rsplit(":", 1)[1])
    raise SystemExit("the server ended before it was ready")


async def _rounds(
    server: Served, ids: list[str], rounds: int, seconds: float, connections: int
) -> dict[str, dict[str, float]]:
    rng = random.Random(2)
    starts = ids[: -PAGE or None]
    paths: dict[str, Callable[[], str]] = {
        "single": lambda: f"/api/v1/vms/{rng.choice(ids)}",
        "page": lambda: f"/api/v1/vms?limit={PAGE}&cursor={cursor_after(rng.choice(starts))}",
    }
    for path in paths.values():
        await load(server, path, connections, 0.5)  # fill caches before the first round
    measured: dict[str, list[Round]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            measured[name].append(await load(server, path, connections, seconds))
    return {name: _median(all_rounds) for name, all_rounds in measured.items()}


def _median(rounds: list[Round]) -> dict[str, float]:
    return {
        "per_s": statistics.median(one.per_s for one in rounds),
        "p50_ms": statistics.median(one.p50_ms for one in rounds),
        "p99_ms": statistics.median(one.p99_ms for one in rounds),
        "cpu_us": statistics.median(one.cpu_us for one in rounds),
        "failures": sum(one.failures for one in rounds),
    }


def main() -> int:
    """Print a table and, as the last line, one JSON object; 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=8)
    asked = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure(asked.rounds, asked.seconds, asked.connections))
    print(f"{VMS_IN_STORE} VMs, {asked.connections} connections, median of {asked.rounds} rounds")
    print(f"{'read':8}{'per second':>12}{'p50 ms':>9}{'p99 ms':>9}{'CPU us':>9}  target")
    missed = False
    for name, one in found.items():
        per_s, p99_ms = TARGETS[name]
        met = one["per_s"] >= per_s and one["p99_ms"] <= p99_ms and not one["failures"]
        missed |= not met
        verdict = "met" if met else "MISSED"
        target = f">= {per_s:g}/s, p99 <= {p99_ms:g} ms: {verdict}"
        print(f"{name:8}{one['per_s']:12.0f}{one['p50_ms']:9.2f}{one['p99_ms']:9.2f}{one['cpu_us']:9.0f}  {target}")
    print(json.dumps(found))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
