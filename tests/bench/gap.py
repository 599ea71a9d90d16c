"""How long a network misses a guest that moves: `python -m tests.bench.gap [--rounds N] [--json F]`. Needs root.

A guest on an overlay network moves to and fro between two nodes, live. A third node asks it every millisecond, by ARP
sent to its card alone, so that each question takes the very way its node has for that card. The gap is the longest time
between two answers; the guest's downtime is as in novacron.lab.measure: how long its clock stood, and its own longest
tick gap beside that. What the network adds is the difference.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import itertools
import json
import platform
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from novacron.agent.network import frames
from novacron.agent.network.names import bridge_name, probe_mac
from novacron.client import devices, images, migrations, networks, vms
from novacron.lab.failure import LabFailed
from novacron.lab.guest.build import build
from novacron.lab.guest.line import GuestLine, Status
from novacron.lab.lab import Lab, open_lab
from novacron.lab.measure import Sample, stood_still_ns
from novacron.lab.network import node_address
from novacron.lab.screen import Screen
from novacron.model.image import FileRole

ADDRESS = "10.20.0.2"
MEMORY_MIB = 256
ASK_EVERY_S = 0.001
GOAL_MS = 20.0
SAMPLES = 128
SETTLE_S = 1.5  # the announcements of the move before have ended
_ALL_KINDS, _SOL_PACKET, _ADD_MEMBERSHIP, _PROMISCUOUS = 3, 263, 1, 1


class Round(NamedTuple):
    """One move, in ms. gap: as the third node saw it; idle: the longest between two answers while nothing moved."""

    gap_ms: float
    idle_ms: float
    guest_ms: float
    stopped_ms: float  # from the source's stop to the target's resume
    recorded_ms: float | None

    @property
    def added_ms(self) -> float:
        return self.gap_ms - self.guest_ms


class Asker:
    """Asks in a thread of its own inside the third node until told to end."""

    def __init__(self, lab: Lab, network_id: str, mac: str) -> None:
        self._stop = threading.Event()
        self._heard: list[float] = []
        own = probe_mac(network_id, node_address(3))
        question = frames.question(own, ipaddress.ip_address(ADDRESS))
        self._question = bytes.fromhex(mac.replace(":", "")) + question[6:]
        self._thread = threading.Thread(
            target=lambda: lab.node("node-3").run(lambda: self._ask(bridge_name(network_id)))
        )
        self._thread.start()

    def _ask(self, bridge: str) -> None:
        kind = socket.htons(_ALL_KINDS)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, kind) as line:
            line.bind((bridge, _ALL_KINDS))
            joined = struct.pack("IHH8x", socket.if_nametoindex(bridge), _PROMISCUOUS, 0)
            line.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, joined)
            asked, due = ipaddress.ip_address(ADDRESS), time.monotonic()
            while not self._stop.is_set():
                if time.monotonic() >= due:
                    line.send(self._question)
                    due = max(due + ASK_EVERY_S, time.monotonic())
                line.settimeout(max(1e-4, due - time.monotonic()))
                with contextlib.suppress(TimeoutError):
                    if frames.answers(line.recv(2048), asked):
                        self._heard.append(time.monotonic())

    def mark(self) -> int:
        return len(self._heard)

    def longest_ms(self, since: int) -> float:
        """Between two answers from that mark on."""
        heard = list(self._heard[max(0, since - 1) :])
        return max(later - earlier for earlier, later in itertools.pairwise(heard)) * 1e3

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


async def bench(rounds: int, screen: Screen) -> list[Round]:
    """All moves in order."""
    files = await asyncio.to_thread(build, None, screen.say)
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)
        async with open_lab(path / "lab", nodes=3, bridged=True, say=screen.say) as lab:
            do = lab.client.do
            await do(images.create(images.ImageCreate(name="guest", cmdline=files.cmdline)))
            await lab.client.upload("guest", FileRole.KERNEL, files.kernel)
            await lab.client.upload("guest", FileRole.INITRD, files.initrd)
            await do(images.seal("guest"))
            network = await do(networks.create(networks.NetworkCreate(name="web", ipv4="10.20.0.0/24", mode="nat")))
            vm = await _guest(lab, "moving", "node-1", ADDRESS)
            await _guest(lab, "staying", "node-3", "10.20.0.3")  # the third node is on the network
            await asyncio.to_thread(lab.node("node-1").run, lambda: GuestLine.wait(ADDRESS).close())
            asker = Asker(lab, network.id, vm.nics[0].mac)
            try:
                found = []
                for number in range(rounds):
                    found.append(await _move(lab, asker, f"node-{2 - number % 2}", f"node-{1 + number % 2}"))
                    screen.say(f"{number}: {found[-1]} added {found[-1].added_ms:.1f} ms")
            finally:
                asker.end()
            return found


async def _guest(lab: Lab, name: str, node: str, address: str) -> vms.Vm:
    nic = devices.NicIn(network="overlay", net="web", addresses=[address])
    words = f"novacron.name={name} novacron.ip={address}/24 novacron.gw=10.20.0.1"
    asked = vms.VmCreate(name=name, image="guest", memory_mib=MEMORY_MIB, node=node, nics=[nic], kernel_cmdline=words)
    made = await lab.client.do(vms.create(asked))
    return await lab.client.wait_vm(made.id, "running")


async def _move(lab: Lab, asker: Asker, target: str, source: str) -> Round:
    still = asker.mark()
    await asyncio.sleep(SETTLE_S)
    idle_ms = asker.longest_ms(still)
    before, _ = await asyncio.to_thread(lab.node(source).run, lambda: _look(reset=True))
    began = asker.mark()
    asked = await lab.client.do(migrations.create(migrations.MigrationCreate(vm="moving", target_node=target)))
    ended = await lab.client.wait_migration(asked.id)
    if ended.state != "completed" or ended.figures.downtime_stopped_ms is None:
        raise LabFailed.because(f"the migration ended {ended.state}: {ended.problem}")
    await asyncio.sleep(SETTLE_S / 3)  # whoever is slow to answer is heard too
    gap_ms = asker.longest_ms(began)
    after, status = await asyncio.to_thread(lab.node(target).run, lambda: _look(reset=False))
    guest_ms = max(0.0, stood_still_ns(before, after) / 1e6) + max(0.0, status.max_gap_us / 1e3 - status.tick_ms)
    return Round(gap_ms, idle_ms, guest_ms, ended.figures.downtime_stopped_ms or 0.0, ended.figures.network_gap_ms)


def _look(*, reset: bool) -> tuple[Sample, Status]:
    """The guest's clock beside ours, by the exchange with the shortest way, and its own account."""
    line = GuestLine.wait(ADDRESS)
    try:
        samples = [_exchange(line) for _ in range(SAMPLES)]
        if reset:
            line.ask("gaps reset")
        return min(samples, key=lambda sample: sample.round_trip_ns), line.status()
    finally:
        line.close()


def _exchange(line: GuestLine) -> Sample:
    sent = time.monotonic_ns()
    answer = line.ask("clock")
    return Sample(sent, time.monotonic_ns(), int(answer))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    runs = asyncio.run(bench(asked.rounds, Screen(sys.stderr)))
    added = [run.added_ms for run in runs]
    found = {
        "gap_ms": statistics.median(run.gap_ms for run in runs),
        "guest_downtime_ms": statistics.median(run.guest_ms for run in runs),
        "added_ms": statistics.median(added),
        "added_worst_ms": max(added),
        "beyond_stop_ms": statistics.median(run.gap_ms - run.stopped_ms for run in runs),
        "recorded_gap_ms": statistics.median(run.recorded_ms or 0.0 for run in runs),
        "idle_ms": statistics.median(run.idle_ms for run in runs),
        "reached": statistics.median(added) <= GOAL_MS,
        "rounds": len(runs),
        "kernel": platform.release(),
    }
    text = json.dumps(found, indent=1)
    sys.stdout.write(text + "\n")
    if asked.json:
        asked.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
