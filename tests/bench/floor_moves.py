"""The floor of the migration bench: a machine moved between two nodes by a bare QMP script.

No store, no control plane, no records, no checks: what is left is what QEMU itself needs. It asks for the same
capabilities, limits and (unless told otherwise) the same TLS as NovaCron does.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import IPRoute

from novacron.agent.drivers.qemu import migration as words
from novacron.control.migrations.decide import channels_by
from novacron.lab.namespaces import Namespace
from novacron.lab.network import BRIDGE
from novacron.model.migration import Goals
from tests.bench.floor import DEADLINE_S, Qemu, Template, command

LOOK_S = 0.05


class Took(NamedTuple):
    """Times in ms. start: the target's QEMU up and listening; wall: all of it, until the source's process is gone."""

    start_ms: float
    wall_ms: float
    qemu_ms: float
    bytes_transferred: int


class Endless(NamedTuple):
    """A pre-copy that was called off. left: bytes left at the beginning of each pass; ended: it did end by itself."""

    ended: bool
    seconds: float
    left: list[int]


class Floor:
    """One machine that moves to and fro between two nodes. Directories lie below `directory`."""

    def __init__(
        self, name: str, template: Template, directory: Path, nodes: list[Namespace], hosts: list[str], guest: int,
        address: str, *, tls: bool = True, disk: Path | None = None,
    ) -> None:  # fmt: skip
        self._template, self._directory, self._nodes, self._hosts = template, directory, nodes, hosts
        self._tap, self._mac, self._address, self._tls = f"t{name}"[:15], f"02:00:00:00:00:{guest:02x}", address, tls
        self._disk = disk
        for node in nodes:
            node.run(self._plug)
        self._count = 0
        self._at = 0
        self._qemu = self._start(0, incoming=False)
        self._qemu.monitor.execute("cont")
        known = self._qemu.monitor.execute("query-migrate-parameters")
        self._channels = channels_by(os.cpu_count() or 1) if "zero-page-detection" in known else 1  # as NovaCron

    def migrate(self, goals: Goals = Goals(), *, stands_still: bool = False) -> Took:  # noqa: B008 (frozen)
        """To the other node, as NovaCron would; stands_still: warm."""
        began = time.monotonic()
        source, target = self._qemu, self._start(1 - self._at, incoming=True)
        uri, started = self._connect(source, target, goals)
        if stands_still:
            source.monitor.execute("stop")
        source.monitor.execute("migrate", {"uri": uri})
        source.monitor.until_migration("pre-switchover")
        source.monitor.execute("migrate-continue", {"state": "pre-switchover"})
        source.monitor.until_migration("completed")
        target.monitor.until_migration("completed")
        target.monitor.execute("cont")
        target.monitor.execute("announce-self", words.ANNOUNCE)

        while source.monitor.execute("query-status")["status"] != "postmigrate":
            pass
        figures = source.monitor.execute("query-migrate")
        self._leave(source)
        ended = time.monotonic()
        if self._tls:
            target.monitor.execute("migrate-set-parameters", {"tls-creds": ""})
            target.monitor.execute("object-del", {"id": "key"})
        self._qemu, self._at = target, 1 - self._at
        sent = figures["ram"]["transferred"]
        return Took((started - began) * 1e3, (ended - began) * 1e3, float(figures["downtime"]), sent)

    def reboot(self) -> float:
        """Shut down here by its power button and booted on the other node (cold); ms until it boots there."""
        began = time.monotonic()
        source = self._qemu
        source.monitor.execute("system_powerdown")
        source.monitor.until_event("SHUTDOWN")
        self._leave(source)
        self._at = 1 - self._at
        self._qemu = self._start(self._at, incoming=False)
        self._qemu.monitor.execute("cont")
        return (time.monotonic() - began) * 1e3

    def try_precopy(self, goals: Goals, *, passes: int, seconds: float) -> Endless:
        """Send for so many passes and so many seconds at least; then it is called off and runs on where it was."""
        source, target = self._qemu, self._start(1 - self._at, incoming=True)
        try:
            uri, _ = self._connect(source, target, goals)
            began = time.monotonic()
            source.monitor.execute("migrate", {"uri": uri})
            left: dict[int, int] = {}
            while True:
                info = source.monitor.execute("query-migrate")
                seen = info.get("ram", {})
                left.setdefault(seen.get("dirty-sync-count", 0), seen.get("remaining", 0))
                took_s = time.monotonic() - began
                ended = info["status"] not in ("setup", "active")
                if ended or (len(left) > passes and took_s >= seconds):
                    break
                time.sleep(LOOK_S)
            source.monitor.execute("migrate_cancel")
            while source.monitor.execute("query-migrate")["status"] not in ("cancelled", "failed"):
                time.sleep(LOOK_S)
            if source.monitor.execute("query-status")["status"] != "running":
                source.monitor.execute("cont")
            if self._tls:
                source.monitor.execute("migrate-set-parameters", {"tls-creds": ""})
                source.monitor.execute("object-del", {"id": "key"})
            return Endless(ended, took_s, [left[number] for number in sorted(left) if number >= 2])
        finally:
            target.end()

    def rest(self) -> None:
        self._qemu.monitor.execute("stop")

    def wake(self) -> None:
        self._qemu.monitor.execute("cont")

    def end(self) -> None:
        self._qemu.end()

    def _connect(self, source: Qemu, target: Qemu, goals: Goals) -> tuple[str, float]:
        """Key, capabilities and limits on both sides: where the target listens, and since when."""
        credentials = ""
        if self._tls:
            key, credentials = secrets.token_hex(32), "key"
            target.hold_key(key, "server")
            source.hold_key(key, "client")
        capabilities = words.capabilities(on=True, channels=self._channels)
        target.monitor.execute("migrate-set-capabilities", capabilities)
        target.monitor.execute("migrate-set-parameters", words.target_parameters(credentials, self._channels))
        target.monitor.execute("migrate-incoming", {"uri": words.uri(self._hosts[1 - self._at], 0)})
        listens: dict[str, Any] = target.monitor.execute("query-migrate")["socket-address"][0]
        started = time.monotonic()
        source.monitor.execute("migrate-set-capabilities", capabilities)
        parameters = words.source_parameters(goals, credentials, channels=self._channels)
        source.monitor.execute("migrate-set-parameters", parameters)
        return words.uri(listens["host"], int(listens["port"])), started

    def _leave(self, source: Qemu) -> None:
        source.monitor.execute("quit")
        source.process.wait(DEADLINE_S)
        source.end()

    def _start(self, node: int, *, incoming: bool) -> Qemu:
        self._count += 1

        def make(monitors: list[int]) -> list[str]:
            return command(self._template, monitors, self._tap, self._mac, self._address, self._disk, incoming=incoming)

        return Qemu(self._template, self._directory / f"{self._tap}-{self._count}", self._nodes[node], make)

    def _plug(self) -> None:
        with IPRoute() as ip:
            with contextlib.suppress(IndexError):
                ip.link("del", index=ip.link_lookup(ifname=self._tap)[0])
            ip.link("add", kind="tuntap", mode="tap", ifname=self._tap, uid=self._template.uid)
            bridge = ip.link_lookup(ifname=BRIDGE)[0]
            ip.link("set", index=ip.link_lookup(ifname=self._tap)[0], master=bridge, state="up")
