"""Bytes on a WAN for like guests, one after the other: `make bench-wan` (needs root; boots eight guests first: long).

    plain         QEMU's own stream
    multifd-zstd  QEMU's multifd, two channels, zstd at QEMU's own level
    novacron      the stream proxy; its cache knows nothing before the first guest
    novacron+img  the same, and the target holds the image the guests' disks are made of

Between two network namespaces lies a link of 100 Mbit/s with a round trip of 40 ms. Each guest runs at the source
when it is sent; what it holds is said in tests/bench/wan_guest.py. Bytes are those of the source's network card, both
directions, all headers counted. Afterwards the memories of source and target are compared, page by page.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import platform
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import IPRoute

from novacron.lab.links import Links, LinkState
from novacron.lab.namespaces import Namespace
from novacron.lab.network import UPLINK, Fabric, node_address
from novacron.lab.record import LabDir
from tests.bench import wan_guest
from tests.bench.floor import Monitor

RATE_BIT_PER_S = 100_000_000
ROUND_TRIP_MS = 40.0
DOWNTIME_LIMIT_MS = 300
CONTESTANTS = ("plain", "multifd-zstd", "novacron", "novacron+img")
COUNTS = (2, 4, 8)


class Run(NamedTuple):
    """One guest moved. total_s: from the order to both sides' `completed`. wrong: pages that differ at the target."""

    contestant: str
    guest: int
    wire_bytes: int
    total_s: float
    downtime_ms: float
    wrong: list[int]
    ours: dict[str, Any]


class Proxy:
    """One end of ours in its namespace."""

    def __init__(self, place: Namespace, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.bench.wan_end", *arguments]
        self._process = place.run(
            lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        self.answer("ready")

    def order(self, **words: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self.answer("address")

    def answer(self, word: str) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("an end of the stream has ended")
        return json.loads(line)[word]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class Wan:
    """Two nodes and the link between. Node 1 is the source."""

    def __init__(self, lab: LabDir) -> None:
        self.fabric = Fabric(0)
        self._links = Links(self.fabric, lab, seed=1)
        for number in (1, 2):
            self._links.join(number)
        self.fabric.settle()
        self._links.change(1, LinkState(latency_ms=ROUND_TRIP_MS / 4, rate_bit_per_s=RATE_BIT_PER_S))
        self._links.change(2, LinkState(latency_ms=ROUND_TRIP_MS / 4))

    @property
    def source(self) -> Namespace:
        return self.fabric.nodes[0]

    @property
    def target(self) -> Namespace:
        return self.fabric.nodes[1]

    def carried_bytes(self) -> int:
        """By the source's card so far, in and out."""

        def read() -> int:
            with IPRoute() as ip:
                statistics = ip.get_links(ifname=UPLINK)[0].get_attr("IFLA_STATS64")
                return int(statistics["rx_bytes"]) + int(statistics["tx_bytes"])

        return self.source.run(read)

    def close(self) -> None:
        self._links.close()
        self.fabric.close()


class Guests:
    """Saved guests, and QEMUs for them."""

    def __init__(self, directory: Path, work: Path, count: int) -> None:
        self._work = work
        self.kernel, self.ram_disk = wan_guest.initrd(directory)
        self.image = directory / "disk" if (directory / "disk").exists() else wan_guest.disk(directory)
        self.states = [directory / f"guest{number}" for number in range(1, count + 1)]
        for number, state in enumerate(self.states, start=1):
            if not state.exists():
                print(f"booting guest {number} of {count}", flush=True)
                fresh = wan_guest.saved(work, self.kernel, self.ram_disk, self.image, number)
                fresh.rename(state)

    @contextlib.contextmanager
    def waiting(self, number: int, name: str, place: Namespace) -> Iterator[Monitor]:
        """A QEMU for guest `number` that waits for its state."""
        monitor = self._work / name
        more = ("-serial", "null", "-S", "-incoming", "defer")
        command = wan_guest.machine(self.kernel, self.ram_disk, self.image, number, monitor, *more)
        with wan_guest.running(command, monitor, place.run) as (_, door):
            yield door

    def restore(self, number: int, door: Monitor) -> None:
        wan_guest.restore(self.states[number - 1], door, self._work)
        door.execute("cont")


class Bench:
    """Everything of one run."""

    def __init__(self, wan: Wan, guests: Guests, work: Path, channels: int) -> None:
        self._wan, self._guests, self._work = wan, guests, work
        common = ("--channels", str(channels))
        image = ("--image", str(guests.image))
        self._receivers = {
            "novacron": Proxy(wan.target, "receive", "--dir", str(work), *common),
            "novacron+img": Proxy(wan.target, "receive", "--dir", str(work), *common, *image),
        }
        self._senders = {name: Proxy(wan.source, "send", *common) for name in self._receivers}

    def end(self) -> None:
        for proxy in (*self._receivers.values(), *self._senders.values()):
            proxy.end()

    def move(self, contestant: str, number: int) -> Run:
        wan, guests = self._wan, self._guests
        with (
            guests.waiting(number, "source", wan.source) as source,
            guests.waiting(number, "target", wan.target) as target,
        ):
            guests.restore(number, source)
            for door in (source, target):
                self._prepare(door, contestant)
            uri, figures = self._listen(contestant, target)
            before, began = wan.carried_bytes(), time.monotonic()
            source.execute("migrate", {"uri": uri})
            source.until_migration("completed")
            target.until_migration("completed")
            total_s = time.monotonic() - began
            ours = figures()
            carried = wan.carried_bytes() - before
            while source.execute("query-status")["status"] != "postmigrate":
                time.sleep(0.01)
            here, there = self._memory(source), self._memory(target)
            wrong = [page for page, (one, other) in enumerate(zip(here, there, strict=True)) if one != other]
            downtime_ms = float(source.execute("query-migrate")["downtime"])
        return Run(contestant, number, carried, total_s, downtime_ms, wrong, ours)

    @staticmethod
    def _prepare(door: Monitor, contestant: str) -> None:
        multifd = contestant == "multifd-zstd"
        states = {"events": True, "return-path": True, "multifd": multifd}
        door.execute(
            "migrate-set-capabilities",
            {"capabilities": [{"capability": name, "state": state} for name, state in states.items()]},
        )
        parameters: dict[str, Any] = {"max-bandwidth": 0, "downtime-limit": DOWNTIME_LIMIT_MS}
        if multifd:
            parameters |= {"multifd-channels": 2, "multifd-compression": "zstd"}
        door.execute("migrate-set-parameters", parameters)

    def _listen(self, contestant: str, target: Monitor) -> tuple[str, Callable[[], dict[str, Any]]]:
        """Where the source's QEMU shall connect, and what there is to say of it afterwards."""
        host = node_address(2)
        if contestant not in self._receivers:
            target.execute("migrate-incoming", {"uri": f"tcp:{host}:0"})
            listens = target.execute("query-migrate")["socket-address"][0]
            return f"tcp:{host}:{listens['port']}", dict
        receiver, sender = self._receivers[contestant], self._senders[contestant]
        incoming, outgoing = self._work / "incoming", self._work / "outgoing"
        target.execute("migrate-incoming", {"uri": f"unix:{incoming}"})
        secret = secrets.token_hex(32)
        address = receiver.order(secret=secret, host=host, qemu=str(incoming))
        uri = sender.order(secret=secret, target=address, path=str(outgoing))

        def figures() -> dict[str, Any]:
            sent = sender.answer("figures")
            receiver.answer("figures")
            return dict(sent)

        return uri, figures

    def _memory(self, door: Monitor) -> list[bytes]:
        """A digest of each page."""
        path = self._work / "memory"
        door.execute("pmemsave", {"val": 0, "size": wan_guest.MEMORY_MIB << 20, "filename": str(path)})
        with path.open("rb") as saved:
            digests = [hashlib.sha256(page).digest() for page in iter(lambda: saved.read(4096), b"")]
        path.unlink()
        return digests


def table(runs: list[Run]) -> None:
    """Sums over the first guests, and how many times fewer bytes ours are."""
    most = max(run.guest for run in runs)
    print(f"\n{'guests':>6} {'contestant':14} {'MB on the wire':>15} {'s in all':>9}   fewer than plain / multifd-zstd")
    for count in [count for count in COUNTS if count <= most]:
        sums = {name: _sums(runs, name, count) for name in CONTESTANTS}
        for name, (sent, took_s) in sums.items():
            if sent:
                fewer = [f"{other / sent:.2f}" for other in (sums["plain"][0], sums["multifd-zstd"][0])]
                print(f"{count:>6} {name:14} {sent / 1e6:>15.1f} {took_s:>9.1f}   {' / '.join(fewer)}")


def _sums(runs: list[Run], name: str, count: int) -> tuple[int, float]:
    chosen = [run for run in runs if run.contestant == name and run.guest <= count]
    return sum(run.wire_bytes for run in chosen), sum(run.total_s for run in chosen)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.wan", description=__doc__.splitlines()[0])
    parser.add_argument("--guests", type=int, default=8)
    parser.add_argument("--channels", type=int, default=2, help="of the stream proxy")
    parser.add_argument("--only", action="append", choices=CONTESTANTS, help="leave out the others")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep saved guests there (0.5 GB each) for later runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    contestants = asked.only or CONTESTANTS
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="novacron-wan-")))
        if asked.keep:
            asked.keep.mkdir(parents=True, exist_ok=True)
        guests = Guests(asked.keep or work, work, asked.guests)
        lab = LabDir(work / "lab")
        lab.take()
        wan = Wan(lab)
        stack.callback(wan.close)
        bench = Bench(wan, guests, work, asked.channels)
        stack.callback(bench.end)
        runs: list[Run] = []
        for number in range(1, asked.guests + 1):
            turn = number % len(contestants)
            for contestant in (*contestants[turn:], *contestants[:turn]):
                runs.append(run := bench.move(contestant, number))
                said = {key: run.ours[key] for key in ("ratio", "held_pages", "pages", "level") if key in run.ours}
                print(
                    f"guest {number} {contestant:14} {run.wire_bytes / 1e6:7.1f} MB {run.total_s:6.1f} s,"
                    f" downtime by QEMU {run.downtime_ms:.0f} ms {said or ''}",
                    f" {len(run.wrong)} PAGES DIFFER, from {run.wrong[0]:#x}" if run.wrong else "",
                    flush=True,
                )
    print(f"\n{platform.machine()}, {RATE_BIT_PER_S / 1e6:.0f} Mbit/s, {ROUND_TRIP_MS:.0f} ms, TCG")
    table(runs)
    if asked.json:
        asked.json.write_text(json.dumps([run._asdict() for run in runs]))


if __name__ == "__main__":
    main()
