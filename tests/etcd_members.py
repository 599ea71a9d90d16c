"""Real etcd members for tests: on loopback ports, in a directory of the test, ended by it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from novacron.clock import SystemClock
from novacron.control.store.address import EtcdAddress
from novacron.control.store.etcd import EtcdStore
from novacron.control.store.etcd_errors import FLAGS
from novacron.control.store.etcd_origin import Way
from tests.ports import free_ports

ENDING_S = 10.0
STARTING_S = 60.0


class Members:
    """The members of one cluster. files: `ca`, `cert`, `key` for TLS that asks clients for a certificate."""

    def __init__(
        self,
        directory: Path,
        count: int = 1,
        *,
        flags: Sequence[str] = FLAGS.split(),
        files: dict[str, Path] | None = None,
    ) -> None:
        self._directory = directory
        self._flags = flags
        self._files = files or {}
        ports = free_ports(2 * count)
        self.ports, self._peer_ports = ports[:count], ports[count:]
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def address(self, prefix: str = "novacron", *, places: Sequence[int] | None = None) -> EtcdAddress:
        """How a store reaches them; places: only these, in this order."""
        chosen = range(len(self.ports)) if places is None else places
        return EtcdAddress(tuple(f"127.0.0.1:{self.ports[place]}" for place in chosen), prefix, **self._files)

    def start(self, place: int, *more: str) -> None:
        """Start one member, as it was left or for the first time."""
        scheme = "https" if self._files else "http"
        peers = [f"http://127.0.0.1:{port}" for port in self._peer_ports]
        client = f"{scheme}://127.0.0.1:{self.ports[place]}"
        home = self.home(place)
        home.mkdir(mode=0o700, exist_ok=True)
        log = (self._directory / f"m{place}.log").open("ab")
        with log:
            self._running[place] = subprocess.Popen(
                # should this process die, the member dies with it
                ["setpriv", "--pdeathsig", "KILL", "etcd", "--name", f"m{place}", "--data-dir", str(home),
                 "--listen-client-urls", client, "--advertise-client-urls", client,
                 "--listen-peer-urls", peers[place], "--initial-advertise-peer-urls", peers[place],
                 "--initial-cluster", ",".join(f"m{number}={url}" for number, url in enumerate(peers)),
                 "--initial-cluster-state", "new", "--logger", "zap", "--log-level", "error",
                 *self._flags, *self._tls(), *more],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def start_all(self) -> None:
        for place in range(len(self.ports)):
            self.start(place)

    def home(self, place: int) -> Path:
        """The data directory of one member."""
        return self._directory / f"m{place}"

    def said(self, place: int) -> str:
        """By all its processes so far."""
        return (self._directory / f"m{place}.log").read_text(errors="replace")

    def ends(self, place: int) -> int:
        """Wait until a member has ended by itself; its status."""
        return self._running.pop(place).wait(STARTING_S)

    async def replace(self, place: int, asked: int) -> None:
        """A new member with nothing takes the place of one that is lost, as docs/store.md has it; `asked` runs."""
        peer = f"http://127.0.0.1:{self._peer_ports[place]}"
        known = (await self._agreed(asked, "cluster/member/list", {}))["members"]
        lost = next(one["ID"] for one in known if peer in one["peerURLs"])
        await self._agreed(asked, "cluster/member/remove", {"ID": lost})
        await self._agreed(asked, "cluster/member/add", {"peerURLs": [peer]})
        shutil.rmtree(self.home(place), ignore_errors=True)
        self.start(place, "--initial-cluster-state", "existing")

    async def _agreed(self, asked: int, path: str, words: dict[str, Any]) -> dict[str, Any]:
        """The answer, once the others are sure enough of each other to change who is a member."""
        async with asyncio.timeout(STARTING_S):
            while True:
                with contextlib.suppress(OSError):
                    return await asyncio.to_thread(self.call, asked, path, words)
                await asyncio.sleep(0.2)

    def signal(self, place: int, number: signal.Signals) -> None:
        self._running[place].send_signal(number)

    def pid(self, place: int) -> int:
        """Of a running member."""
        return self._running[place].pid

    def kill(self, place: int) -> None:
        """SIGKILL one member; it is gone when this returns."""
        process = self._running.pop(place)
        process.kill()
        process.wait(ENDING_S)

    def revive(self, place: int) -> None:
        """It runs, whether it was stopped or killed."""
        if place in self._running:
            self.signal(place, signal.SIGCONT)
        else:
            self.start(place)

    async def up(self, place: int) -> None:
        """Wait until a started member answers with a majority of the others behind it."""
        try:
            async with asyncio.timeout(STARTING_S):
                while not await asyncio.to_thread(self._is_healthy, place):
                    await asyncio.sleep(0.05)
        except TimeoutError as late:
            ended = self._running[place].poll()
            log = self.said(place)[-2000:]
            raise AssertionError(f"member {place} does not come up; it ended: {ended}; it said: {log}") from late

    def _is_healthy(self, place: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[place]}/health", timeout=ENDING_S) as answer:
                return json.load(answer) == {"health": "true"}
        except OSError:
            return False

    def end(self) -> None:
        """End all, in whatever state they are."""
        for place in tuple(self._running):
            self.kill(place)

    def leader(self) -> int:
        """The place of the member that leads; asks each through its HTTP gateway."""
        for place in self._running:
            with contextlib.suppress(OSError):
                status = self.call(place, "maintenance/status")
                if status.get("leader") == status["header"]["member_id"]:
                    return place
        raise AssertionError("no member leads")

    def call(self, place: int, path: str, words: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask one member through its HTTP gateway, as `etcdctl` asks. :raise OSError: it does not do it."""
        url = f"http://127.0.0.1:{self.ports[place]}/v3/{path}"
        request = urllib.request.Request(url, json.dumps(words or {}).encode())
        with urllib.request.urlopen(request, timeout=ENDING_S) as got:
            answer: dict[str, Any] = json.load(got)
            return answer

    def _tls(self) -> list[str]:
        if not self._files:
            return []
        ca, cert, key = (str(self._files[name]) for name in ("ca", "cert", "key"))
        return ["--client-cert-auth", "--trusted-ca-file", ca, "--cert-file", cert, "--key-file", key]


@contextlib.contextmanager
def members(directory: Path, count: int = 1, **more: object) -> Iterator[Members]:
    """A cluster that is starting; its members are gone afterwards."""
    directory.mkdir(parents=True, exist_ok=True)
    cluster = Members(directory, count, **more)  # type: ignore[arg-type]
    try:
        cluster.start_all()
        yield cluster
    finally:
        cluster.end()


@contextlib.asynccontextmanager
async def opened(address: EtcdAddress, way: Way = "serve", floor: int = 0) -> AsyncIterator[EtcdStore]:
    """The store there; closed afterwards."""
    store = await EtcdStore.open(address, SystemClock(), random.Random(), way=way, floor=floor)
    try:
        yield store
    finally:
        await store.close()


async def settled() -> None:
    """gRPC has told this event loop how each call ended; else it would tell a closed one, during the next test."""
    calls = [task for task in asyncio.all_tasks() if "_AioCall." in task.get_coro().__qualname__]  # type: ignore[union-attr]
    await asyncio.gather(*calls, return_exceptions=True)
