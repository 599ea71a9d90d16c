"""The floor of the migration bench: two QEMUs with NovaCron's own command lines, driven over QMP by nothing else.

No store, no control plane, no records, no checks: what is left is what QEMU itself needs. It asks for the same
capabilities, limits and (unless told otherwise) the same TLS as NovaCron does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import IPRoute

from novacron.agent.drivers.qemu import migration as words
from novacron.agent.drivers.qemu.process import ENVIRONMENT
from novacron.lab.namespaces import Namespace
from novacron.lab.network import BRIDGE
from novacron.model.migration import Goals

DEADLINE_S = 600.0
USERNAME = "floor"


class Template(NamedTuple):
    """A running machine of NovaCron's, to start the like of it: its command line and whom it runs as."""

    argv: tuple[str, ...]
    uid: int
    gid: int


class Took(NamedTuple):
    """Times in ms. start: the target's QEMU up and listening; wall: all of it, until the source's process is gone."""

    start_ms: float
    wall_ms: float
    qemu_ms: float
    bytes_transferred: int


def template_of(pid: int) -> Template:
    """From a process that runs now."""
    proc = Path("/proc") / str(pid)
    argv = tuple((proc / "cmdline").read_text().rstrip("\0").split("\0"))
    ids = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return Template(argv, int(ids["Uid"].split()[0]), int(ids["Gid"].split()[0]))


def command(template: Template, monitors: list[int], tap: str, mac: str, address: str, *, incoming: bool) -> list[str]:
    """NovaCron's own command line with this machine's descriptors, card and address in place of the other's."""
    numbers = iter(monitors)
    argv = []
    for word in template.argv:
        if word.startswith("socket,id=monitor-"):
            word = re.sub(r"fd=\d+", f"fd={next(numbers)}", word)
        elif '"ifname"' in word:
            word = json.dumps(json.loads(word) | {"ifname": tap})
        elif '"mac"' in word:
            word = json.dumps(json.loads(word) | {"mac": mac})
        argv.append(re.sub(r"novacron\.ip=\S+", f"novacron.ip={address}", word))
    if argv[-2:] == ["-incoming", "defer"]:
        argv = argv[:-2]
    return [*argv, "-incoming", "defer"] if incoming else argv


class Monitor:
    """QMP, blocking, as plain as can be."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rwb")
        self._events: list[dict[str, Any]] = []
        self._lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        message = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._lines.write(json.dumps(message).encode() + b"\n")
        self._lines.flush()
        while True:
            answer = json.loads(self._lines.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            self._events.append(answer)

    def until_migration(self, *states: str) -> str:
        """The first MIGRATION event, past or to come, with one of these states."""
        while True:
            for event in self._events:
                if event["event"] == "MIGRATION" and event["data"]["status"] in (*states, "failed"):
                    if event["data"]["status"] == "failed":
                        raise RuntimeError(str(self.execute("query-migrate")))
                    self._events.clear()
                    return str(event["data"]["status"])
            self._events.clear()
            self._events.append(json.loads(self._lines.readline()))

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class Qemu:
    """One process and its monitor."""

    def __init__(
        self, template: Template, directory: Path, place: Namespace, make: Callable[[list[int]], list[str]]
    ) -> None:
        self.directory = directory
        directory.mkdir(mode=0o711)
        os.chown(directory, template.uid, template.gid)
        listening = [_listen(directory / name) for name in ("monitor", "rescue")]
        numbers = [made.fileno() for made in listening]
        log = (directory / "stderr").open("wb")

        def start() -> subprocess.Popen[bytes]:
            # fmt: off
            return subprocess.Popen(
                make(numbers), cwd=directory, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=numbers, start_new_session=True, umask=0o077,
                user=template.uid, group=template.gid, extra_groups=[],
            )
            # fmt: on

        self.process = place.run_as_node(start)
        log.close()
        for made in listening:
            made.close()
        self._template = template
        self.monitor = Monitor(directory / "monitor")

    def hold_key(self, key: str, endpoint: str) -> None:
        folder = self.directory / "key"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "keys.psk").write_text(f"{USERNAME}:{key}\n")
        for path in (folder, folder / "keys.psk"):
            os.chown(path, self._template.uid, self._template.gid)
        credentials = {"qom-type": "tls-creds-psk", "id": "key", "endpoint": endpoint, "dir": str(folder)}
        self.monitor.execute("object-add", credentials | ({"username": USERNAME} if endpoint == "client" else {}))

    def end(self) -> None:
        self.monitor.close()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class Floor:
    """One machine that moves to and fro between two nodes. Directories lie below `directory`."""

    def __init__(
        self, name: str, template: Template, directory: Path, nodes: list[Namespace], hosts: list[str], guest: int,
        address: str, *, tls: bool,
    ) -> None:  # fmt: skip
        self._template, self._directory, self._nodes, self._hosts = template, directory, nodes, hosts
        self._tap, self._mac, self._address, self._tls = f"t{name}"[:15], f"02:00:00:00:00:{guest:02x}", address, tls
        for node in nodes:
            node.run(self._plug)
        self._count = 0
        self._at = 0
        self._qemu = self._start(0, incoming=False)
        self._qemu.monitor.execute("cont")

    def migrate(self) -> Took:
        """To the other node, as NovaCron would with its usual goals."""
        began = time.monotonic()
        source, target = self._qemu, self._start(1 - self._at, incoming=True)
        credentials = ""
        if self._tls:
            key, credentials = secrets.token_hex(32), "key"
            target.hold_key(key, "server")
            source.hold_key(key, "client")
        target.monitor.execute("migrate-set-capabilities", words.capabilities(on=True))
        target.monitor.execute("migrate-set-parameters", words.target_parameters(credentials))
        target.monitor.execute("migrate-incoming", {"uri": words.uri(self._hosts[1 - self._at], 0)})
        listens = target.monitor.execute("query-migrate")["socket-address"][0]
        started = time.monotonic()

        source.monitor.execute("migrate-set-capabilities", words.capabilities(on=True))
        source.monitor.execute("migrate-set-parameters", words.source_parameters(Goals(), credentials))
        source.monitor.execute("migrate", {"uri": words.uri(listens["host"], int(listens["port"]))})
        source.monitor.until_migration("pre-switchover")
        source.monitor.execute("migrate-continue", {"state": "pre-switchover"})
        source.monitor.until_migration("completed")
        target.monitor.until_migration("completed")
        target.monitor.execute("cont")
        target.monitor.execute("announce-self", words.ANNOUNCE)

        while source.monitor.execute("query-status")["status"] != "postmigrate":
            pass
        figures = source.monitor.execute("query-migrate")
        source.monitor.execute("quit")
        source.process.wait(DEADLINE_S)
        ended = time.monotonic()
        if self._tls:
            target.monitor.execute("migrate-set-parameters", {"tls-creds": ""})
            target.monitor.execute("object-del", {"id": "key"})
        source.end()
        self._qemu, self._at = target, 1 - self._at
        sent = figures["ram"]["transferred"]
        return Took((started - began) * 1e3, (ended - began) * 1e3, float(figures["downtime"]), sent)

    def rest(self) -> None:
        self._qemu.monitor.execute("stop")

    def wake(self) -> None:
        self._qemu.monitor.execute("cont")

    def end(self) -> None:
        self._qemu.end()

    def _start(self, node: int, *, incoming: bool) -> Qemu:
        self._count += 1

        def make(monitors: list[int]) -> list[str]:
            return command(self._template, monitors, self._tap, self._mac, self._address, incoming=incoming)

        return Qemu(self._template, self._directory / f"{self._tap}-{self._count}", self._nodes[node], make)

    def _plug(self) -> None:
        with IPRoute() as ip:
            with contextlib.suppress(IndexError):
                ip.link("del", index=ip.link_lookup(ifname=self._tap)[0])
            ip.link("add", kind="tuntap", mode="tap", ifname=self._tap, uid=self._template.uid)
            bridge = ip.link_lookup(ifname=BRIDGE)[0]
            ip.link("set", index=ip.link_lookup(ifname=self._tap)[0], master=bridge, state="up")


def _listen(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen(1)
    return made
