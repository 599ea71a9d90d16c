"""A machine moves between nodes in the middle of a conversation that only its security group's memory lets go on."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from novacron.agent.network.names import overlay_tap
from novacron.lab.guest.build import build
from novacron.lab.guest.line import PORT, GuestLine
from novacron.model.machine import MachineSpec, Nic
from novacron.model.network import Direction, PortFilter, Protocol, Rule
from tests.agent.overlay_nodes import VM, Node, nic, place, site, spec
from tests.bench.floor import Monitor

pytestmark = [
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no qemu-system-x86_64 here"),
]


class Machine:
    """A QEMU of the test's own on a node, its card the tap that NovaCron plugged."""

    def __init__(self, node: Node, directory: Path, card: Nic, *, incoming: str = "") -> None:
        directory.mkdir()
        files, monitor = build(), directory / "qmp"
        # fmt: off
        words = [
            "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "qemu64", "-m", "128",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-kernel", str(files.kernel), "-initrd", str(files.initrd),
            "-append", f"{files.cmdline} novacron.ip={card.addresses[0]}/24",
            "-serial", f"file:{directory / 'serial'}", "-qmp", f"unix:{monitor},server=on,wait=on",
            "-netdev", f"tap,id=net0,ifname={overlay_tap(card.id)},script=no,downscript=no,vhost=off",
            "-device", f"virtio-net-pci,netdev=net0,mac={card.mac}",
            *(["-S", "-incoming", incoming] if incoming else []),
        ]
        # fmt: on
        self.process = node.call(lambda: subprocess.Popen(words))
        try:
            self._monitor = self._reached(monitor)
        except BaseException:
            self._stop()
            raise

    def _reached(self, path: Path) -> Monitor:
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # not made yet, or not heard yet
                return Monitor(path)
            assert self.process.poll() is None
            time.sleep(0.01)

    def tell(self, command: str, **arguments: Any) -> Any:
        return self._monitor.execute(command, arguments)

    def until(self, query: str, status: str) -> None:
        while (seen := self.tell(query).get("status")) != status:
            assert seen not in ("failed", "cancelled"), seen
            time.sleep(0.005)

    def end(self) -> None:
        self._monitor.close()
        self._stop()

    def _stop(self) -> None:
        self.process.kill()
        self.process.wait()


def test_a_real_guest_is_talked_to_through_the_whole_of_its_move(tmp_path: Path) -> None:
    bare = nic(2)
    door = Rule(direction=Direction.IN, protocol=Protocol.TCP, port_first=PORT)
    card = nic(2, filter=PortFilter(revision=1, addresses=bare.addresses, stateful=True, rules=(door,)))
    shut = nic(2, filter=PortFilter(revision=2, addresses=bare.addresses, stateful=True))
    machines: list[Machine] = []
    with site(3) as three:
        a, b, c = three.nodes
        client = three.plug(c, nic(3), spec())
        client.with_kernel("10.5.0.3/24")
        assert client.namespace is not None
        a.do(a.overlay.plug(card, None, [spec()]))
        three.apply(three.state(1, place(card, a), place(client.card, c)))
        try:
            machines.append(Machine(a, tmp_path / "a", card))
            line = client.namespace.run(lambda: GuestLine.wait(card.addresses[0], PORT))
            born = line.status().boot_id
            b.do(b.overlay.plug(shut, None, [spec()]))
            machines.append(Machine(b, tmp_path / "b", card, incoming=f"tcp:{b.address}:4444"))
            source, target = machines
            source.tell("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
            source.tell("migrate", uri=f"tcp:{b.address}:4444")
            source.until("query-migrate", "completed")
            spec_there = MachineSpec(vm_id=VM % 1, generation=2, vcpus=1, memory_mib=128, nics=(shut,))
            luggage = a.do(a.movements.leaving(spec_there))
            b.do(b.movements.arriving(spec_there, luggage.flows))
            target.until("query-status", "paused")
            target.tell("cont")
            b.do(b.movements.arrived(spec_there))
            three.apply(three.state(2, place(shut, b, 2), place(client.card, c)))
            machines.pop(0).end()
            a.do(a.overlay.unplug(card))
            assert line.status().boot_id == born, "the same conversation with the same guest"
            with pytest.raises(OSError, match="timed out"):
                client.namespace.run(lambda: socket.create_connection((card.addresses[0], PORT), timeout=1))
            line.close()
        finally:
            for machine in machines:
                machine.end()
