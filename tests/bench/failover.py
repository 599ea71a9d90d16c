"""From a node's loss to its guest answering elsewhere, on three etcd members, three servers and three nodes.

    python -m tests.bench.failover [--rounds N] [--fifth-only]

Each round takes a node's power without a word (`unplanned`), or has its agent end its machines and say so (`told`), and
counts until the guest is seen to tick in its new life. At the standard times and at a fifth of them. One JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sys
import time
from collections.abc import Awaitable, Callable

from novacron.model.timing import STANDARD
from tests.system.cluster_cast import Cast, a_cast
from tests.system.cluster_site import FIFTH_S, ClusterSite, a_cluster
from tests.system.observer import observed

ROUNDS = 20
AGENT_ENDS_S = 30.0
PROMISED_S = {"unplanned": 40.0, "told": 5.0}
"""p95 at the standard times."""


async def lose_power(cast: Cast) -> None:
    await asyncio.to_thread(cast.site.hosts[cast.node].power_off)


async def tell_to_leave(cast: Cast) -> None:
    cast.site.hosts[cast.node].agent.process.send_signal(signal.SIGPWR)


WAYS: dict[str, Callable[[Cast], Awaitable[None]]] = {"unplanned": lose_power, "told": tell_to_leave}


async def one(site: ClusterSite, way: str) -> float:
    """Seconds of one round; the site is whole again afterwards."""
    async with a_cast(site) as cast, observed(site, cast.struck, cast.beside) as seen:
        began_s = time.monotonic()
        await WAYS[way](cast)
        after = await site.runs_elsewhere(cast.struck)
        took_s = await seen.boots(cast.struck.id, str(after.node)) - began_s
        agent = site.hosts[cast.node].agent.process  # one that is about to end must not be taken for one that lives
        await asyncio.to_thread(agent.wait, AGENT_ENDS_S)
    return took_s


def summary(took_s: list[float]) -> dict[str, float]:
    """Of at least one round; a percentile is the value of a round, never between two."""
    ordered = sorted(took_s)
    at = {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in (("p50", 0.5), ("p95", 0.95))}
    return {**{f"{name}_s": round(value, 2) for name, value in at.items()}, "max_s": round(ordered[-1], 2)}


async def measure(heartbeat_s: float, rounds: int) -> dict[str, dict[str, float]]:
    found = {}
    async with a_cluster(heartbeat_s) as site:
        for way in WAYS:
            took_s = []
            for number in range(rounds):
                took_s.append(await one(site, way))
                sys.stderr.write(f"heartbeat {heartbeat_s:g} s, {way} {number + 1}/{rounds}: {took_s[-1]:.2f} s\n")
            found[way] = summary(took_s)
    return found


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.failover")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--fifth-only", action="store_true", help="leave the standard times out")
    given = parser.parse_args()
    times = [FIFTH_S] if given.fifth_only else [FIFTH_S, STANDARD.heartbeat_s]
    figures = {f"heartbeat_{one:g}_s": await measure(one, given.rounds) for one in times}
    print(json.dumps({"rounds": given.rounds, "promised_p95_s": PROMISED_S, **figures}))


if __name__ == "__main__":
    asyncio.run(main())
