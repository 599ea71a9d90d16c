"""Thousands of seeds at once: `python -m tests.sim.ownership.run --seeds 2000`; one again, told: `--seed 17`."""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys
import time

from tests.sim.ownership.world import World


def one(seed: int) -> tuple[int, str, int, int, int]:
    """Run a seed: what it violated first, and what happened in it."""
    world = World(seed).run()
    return seed, world.violations[0] if world.violations else "", world.starts, world.takeovers, world.migrations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="run this one alone and tell its story")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    if asked.seed is not None:
        world = World(asked.seed, tell=True).run()
        print("\n".join(world.log))
        print("\n".join(world.violations) or "no violation")
        return 1 if world.violations else 0
    began_s = time.monotonic()
    seeds = range(asked.first, asked.first + asked.seeds)
    with concurrent.futures.ProcessPoolExecutor(asked.jobs) as pool:
        found = list(pool.map(one, seeds, chunksize=20))
    failed = [(seed, what) for seed, what, *_ in found if what]
    took_s = time.monotonic() - began_s
    starts, takeovers, migrations = (sum(each) for each in list(zip(*found, strict=True))[2:])
    print(
        f"{len(found)} seeds in {took_s:.0f} s: {len(failed)} violated something; "
        f"{starts} starts, {takeovers} takeovers, {migrations} migrations"
    )
    for seed, what in failed[:20]:
        print(f"seed {seed}: {what}\n    again: python -m tests.sim.ownership.run --seed {seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
