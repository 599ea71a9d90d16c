"""The store on three etcd members of this machine: commits beside bare transactions, and what a lost member costs.

    python -m tests.bench.etcd

The floor is one compare and one put over the same connection. Rounds are interleaved, their median is printed.
"""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from novacron.control.store.etcd import EtcdStore
from novacron.control.store.etcd_line import TXN
from novacron.control.store.etcd_words_pb2 import Compare, PutRequest, TxnRequest
from tests.bench.store import COMMITS, VALUE, in_flight, one_at_a_time, point_read, seen_by_a_watch
from tests.etcd_members import Members, members, opened
from tests.system.test_etcd_store import Traffic, traffic

ROUNDS = 5
STRIKES = 4


async def bare(store: EtcdStore) -> float:
    """Compare-and-put transactions a second, one after the other."""
    key, revision = b"/bench/floor", 0
    began = time.perf_counter()
    for _ in range(COMMITS):
        question = TxnRequest(compare=[Compare(key=key, target=Compare.MOD, mod_revision=revision)])
        question.success.add(put=PutRequest(key=key, value=VALUE))
        answer, _ = await store._line.ask(TXN, question)
        revision = answer.header.revision if answer.succeeded else 0
    return COMMITS / (time.perf_counter() - began)


async def commits(store: EtcdStore) -> dict[str, float]:
    contestants = {
        "floor_commits_per_s": bare,
        "one_at_a_time_commits_per_s": one_at_a_time,
        "in_flight_64_commits_per_s": in_flight,
        "commit_to_watch_ms": seen_by_a_watch,
        "read_us": point_read,
    }
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, measure in contestants.items():
            figures[name].append(await measure(store))  # type: ignore[arg-type]
    return {name: round(statistics.median(values), 2) for name, values in figures.items()}


async def strike(cluster: Members, running: Traffic, place: int, *, stop: bool) -> float:
    """Seconds of the slowest of all commits around a member's loss; it is back afterwards."""
    await running.goes_on(200)
    running.slowest_s = 0.0
    if stop:
        cluster.signal(place, signal.SIGSTOP)
    else:
        cluster.kill(place)
    await running.goes_on(200)
    slowest_s = running.slowest_s
    if stop:
        cluster.signal(place, signal.SIGCONT)
    else:
        cluster.start(place)
    await cluster.up(place)
    return slowest_s


async def main() -> None:
    with tempfile.TemporaryDirectory() as made, members(Path(made), 3) as cluster:
        async with opened(cluster.address()) as store:
            figures = await commits(store)
        gaps: dict[str, list[float]] = {}
        async with opened(cluster.address()) as store, traffic(store) as running:
            for _ in range(STRIKES):
                for name, stop in (("killed", False), ("stopped", True)):
                    gap = await strike(cluster, running, cluster.leader(), stop=stop)
                    gaps.setdefault(f"leader_{name}_s", []).append(gap)
                    place = store._line._place
                    who = "leader" if place == cluster.leader() else "in_use"
                    gaps.setdefault(f"{who}_{name}_s", []).append(await strike(cluster, running, place, stop=stop))
    lines = [f"{name:32}{value:12.1f}" for name, value in figures.items()]
    lines += [f"{name:32}{min(found):9.2f} to {max(found):.2f}" for name, found in sorted(gaps.items())]
    sys.stdout.write("\n".join([*lines, json.dumps(figures | gaps), ""]))


if __name__ == "__main__":
    asyncio.run(main())
