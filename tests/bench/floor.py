"""A QEMU with NovaCron's own command line, driven over QMP by nothing else: what the floor of a bench is made of."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from novacron.agent.drivers.qemu import tls
from novacron.agent.drivers.qemu.process import ENVIRONMENT
from novacron.lab.namespaces import Namespace

DEADLINE_S = 600.0
USERNAME = "floor"


class Template(NamedTuple):
    """A running machine of NovaCron's, to start the like of it: its command line and whom it runs as."""

    argv: tuple[str, ...]
    uid: int
    gid: int


def template_of(pid: int) -> Template:
    """From a process that runs now."""
    proc = Path("/proc") / str(pid)
    argv = tuple((proc / "cmdline").read_text().rstrip("\0").split("\0"))
    ids = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    return Template(argv, int(ids["Uid"].split()[0]), int(ids["Gid"].split()[0]))


def command(
    template: Template, monitors: list[int], tap: str, mac: str, address: str, disk: Path | None, *, incoming: bool
) -> list[str]:
    """NovaCron's own command line with this machine's descriptors, card, address and disk in place of the other's."""
    numbers = iter(monitors)
    argv = []
    for word in template.argv:
        if word.startswith("socket,id=monitor-"):
            word = re.sub(r"fd=\d+", f"fd={next(numbers)}", word)
        elif '"ifname"' in word:
            word = json.dumps(json.loads(word) | {"ifname": tap})
        elif '"mac"' in word:
            word = json.dumps(json.loads(word) | {"mac": mac})
        elif disk and '"filename"' in word:
            word = json.dumps(_with_disk(json.loads(word), disk))
        argv.append(re.sub(r"novacron\.ip=\S+", f"novacron.ip={address}", word))
    if argv[-2:] == ["-incoming", "defer"]:
        argv = argv[:-2]
    return [*argv, "-incoming", "defer"] if incoming else argv


def _with_disk(block: dict[str, Any], disk: Path) -> dict[str, Any]:
    """A block device's description, however deep its file's name stands in it."""
    named = block | {"filename": str(disk)} if "filename" in block else block
    return {key: _with_disk(value, disk) if isinstance(value, dict) else value for key, value in named.items()}


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

    def until_event(self, name: str) -> None:
        """The first event of that name, past or to come."""
        while not any(event["event"] == name for event in self._events):
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
        (folder / tls.FILE).write_text(f"{USERNAME}:{key}\n")
        (folder / tls.GROUP_FILE).write_bytes(tls.GROUP)  # else QEMU searches a group of its own
        for path in (folder, *folder.iterdir()):
            os.chown(path, self._template.uid, self._template.gid)
        credentials = {"qom-type": "tls-creds-psk", "id": "key", "endpoint": endpoint, "dir": str(folder)}
        credentials["priority"] = tls.PRIORITY
        self.monitor.execute("object-add", credentials | ({"username": USERNAME} if endpoint == "client" else {}))

    def end(self) -> None:
        self.monitor.close()
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def _listen(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen(1)
    return made
