"""Migration beside its floor and libvirt: `python -m tests.bench.migration [--only GROUP,…] [--rounds N]`. Needs root.

    live        downtime and time in all of a live migration, idle and dirtying
    dirty       a guest that plain pre-copy cannot finish
    warm, cold  a machine with a disk in a pool that both nodes share
    prediction  by how much the predicted time was off, over varied moves

Prints a table for SPECIFICATION.md and leaves everything measured in .build/bench-migration.json. A time alone is noise
on a machine that others use: what counts are the ratios within one round. libvirt takes part where it is installed
(Debian: libvirt-daemon, libvirt-clients).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from novacron.lab.screen import Screen
from tests.bench import dirty, live, prediction, still
from tests.bench.rows import Row, markdown

OUT = Path(".build/bench-migration.json")
Group = Callable[[int, Screen], Awaitable[tuple[list[Row], Any]]]


async def _live(rounds: int, screen: Screen) -> tuple[list[Row], Any]:
    runs, left_out = await live.bench(rounds, screen)
    screen.lines(*live.table(runs), "", *(f"left out: {reason}" for reason in left_out))
    return live.rows(runs), {"runs": runs, "left_out": left_out}


async def _dirty(rounds: int, screen: Screen) -> tuple[list[Row], Any]:
    found = await dirty.measure(rounds, screen)
    return dirty.rows(found), found


async def _warm(rounds: int, screen: Screen) -> tuple[list[Row], Any]:
    runs = await still.measure("warm", rounds, screen)
    return still.rows("warm", runs), runs


async def _cold(rounds: int, screen: Screen) -> tuple[list[Row], Any]:
    runs = await still.measure("cold", rounds, screen)
    return still.rows("cold", runs), runs


async def _prediction(rounds: int, screen: Screen) -> tuple[list[Row], Any]:
    found = await prediction.measure(rounds * prediction.MOVES_A_ROUND, screen)
    return prediction.rows(found), found


GROUPS: dict[str, Group] = {
    "live": _live, "dirty": _dirty, "warm": _warm, "cold": _cold, "prediction": _prediction
}  # fmt: skip


def main() -> None:
    """Run it. The exit status says whether it ran, not whether the goals were met."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.migration", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", default=",".join(GROUPS), metavar="GROUP,…", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--json", type=Path, default=OUT, metavar="FILE", help="everything measured (default: %(default)s)"
    )
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := sorted(set(chosen) - GROUPS.keys()):
        parser.error(f"there is no group {', '.join(unknown)}: give some of {', '.join(GROUPS)}")
    if os.geteuid() != 0:
        sys.exit("the bench lays a network of its own: run it as root")
    # Ended from outside it puts everything away too, and the kernel's setting back: asyncio does so when interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background work begins without
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    screen = Screen(sys.stdout)
    rows: list[Row] = []
    data: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "load_1m": os.getloadavg()[0]},
        "rounds": given.rounds,
    }
    for name in chosen:
        found, data[name] = asyncio.run(GROUPS[name](given.rounds, screen))
        rows += found
        data["rows"] = rows
        given.json.parent.mkdir(exist_ok=True)
        given.json.write_bytes(msgspec.json.encode(data))
    screen.lines("", *markdown(rows))


if __name__ == "__main__":
    main()
