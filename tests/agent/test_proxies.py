"""The proxies of two nodes: what comes out of one migration's stream, and that nothing is left of it afterwards."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from novacron.agent.drivers.base import Launch
from novacron.agent.drivers.handoff import Awaited, Departure, Reception
from novacron.agent.drivers.qemu.migration import source_parameters
from novacron.agent.proxies import FOLDER, Proxies
from novacron.agent.stream.cache import PageCache
from novacron.agent.stream.figures import Settings
from novacron.agent.stream.meeting import connected
from novacron.errors import InvalidInput, MigrationFailed
from novacron.model.machine import MachineSpec
from novacron.model.migration import Figures, Goals
from novacron.testing.fake_driver import FakeDriver, FakeHost, FakeWorld
from novacron.testing.hand_clock import HandClock
from novacron.wire import moving
from tests.agent.stream_ends import HOST, Target

pytestmark = pytest.mark.anyio

VM = "01890000-0000-7000-8000-000000000001"
MIGRATION = "01890000-0000-7000-8000-0000000000aa"
SPEC = MachineSpec(vm_id=VM, generation=1, vcpus=1, memory_mib=64)
PROXY = moving.Proxy(peer=HOST, scope=f"vm {VM}")
STREAM = os.urandom(300_000)


class Waiting(FakeDriver):
    """A driver whose machines wait at a real unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__(FakeHost(FakeWorld(HandClock()), "b"))
        self._path = path

    async def accept(self, launch: Launch, awaited: Awaited) -> Reception:
        assert awaited.proxied
        return Reception(socket=self._path)


class Pair:
    """Source and target, each with its proxies."""

    def __init__(self, folder: Path, source: Proxies, target: Proxies, qemu: Target) -> None:
        self.folder, self.source, self.target, self.qemu = folder, source, target, qemu
        self.driver = Waiting(folder / "qemu")

    async def accept(self, proxy: moving.Proxy = PROXY) -> moving.ReceptionAt:
        launch = Launch(spec=SPEC, run_dir=self.folder)
        return await self.target.accept(
            self.driver, launch, moving.Accept(migration_id=MIGRATION, spec=SPEC, proxy=proxy)
        )

    async def send(
        self, to: moving.ReceptionAt, *, again: bool = False, left: bool = False, fails: bool = False
    ) -> Departure:
        args = moving.Send(vm_id=VM, generation=1, migration_id=MIGRATION, to=to, goals=Goals())

        async def act(reception: Reception) -> Departure:
            if reception.socket is not None:
                reader, writer = await asyncio.open_unix_connection(reception.socket)
                writer.write(STREAM)
                writer.write_eof()
                await reader.read()
                writer.close()
            if fails:
                raise MigrationFailed("QEMU knows of a closed connection")
            return Departure(stopped_ago_ms=0.0)

        return await self.source.send(args, SPEC, act, again=again, left=left)

    def nothing_is_left(self) -> None:
        assert list((self.folder / "source" / FOLDER).glob("*")) == []


@asynccontextmanager
async def pair(settings: Settings | None = None, pages: PageCache | None = None) -> AsyncIterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="nc-proxies-") as name:
        folder, qemu = Path(name), Target()
        source, target = (
            Proxies(HOST, folder / end, lambda _: None, held, settings)
            for end, held in (("source", None), ("target", pages))
        )
        async with await asyncio.start_unix_server(qemu.take, folder / "qemu"):
            yield Pair(folder, source, target, qemu)
            await source.close()
            await target.close()


async def test_a_stream_arrives_is_counted_and_leaves_nothing() -> None:
    async with pair() as both:
        to = await both.accept()
        assert to.proxied
        assert await both.accept() == to  # asked again: the same answer
        await both.send(to)
        assert bytes(both.qemu.came) == STREAM
        measured = Figures(stream_bytes=len(STREAM), rate_bytes_per_s=1000.0)
        figures = both.source.figured(MIGRATION, measured)
        assert figures.bytes_transferred is not None
        assert len(STREAM) < figures.bytes_transferred < 1.1 * len(STREAM)
        assert figures.rate_bytes_per_s is not None
        assert figures.rate_bytes_per_s > 1000
        for proxies in (both.source, both.target):
            await proxies.end(MIGRATION)
        both.nothing_is_left()
        assert not _listens(to)


async def test_it_is_closed_to_every_other_address() -> None:
    async with pair(Settings(deadline_s=0.5)) as both:
        to = await both.accept(moving.Proxy(peer="127.0.0.2", scope="x"))
        with pytest.raises(MigrationFailed, match="no connection"):
            await asyncio.wait_for(both.send(to, fails=True), 30)
        assert not both.qemu.came
        with pytest.raises(InvalidInput, match="peer: is not an IP address"):
            await Pair(both.folder, both.source, Proxies(HOST, both.folder, lambda _: None), both.qemu).accept(
                moving.Proxy(peer="", scope="x")
            )


async def test_a_failure_says_what_the_proxy_knows_and_closes_it() -> None:
    async with pair() as both:
        to = await both.accept()
        await both.target.end(MIGRATION)  # as if its agent had died: nothing listens there
        with pytest.raises(MigrationFailed, match=r"closed connection \(nothing listens at"):
            await asyncio.wait_for(both.send(to, fails=True), 10)
        both.nothing_is_left()


async def test_what_is_ended_as_soon_as_it_was_begun_listens_no_more() -> None:
    async with pair() as both:
        for _ in range(20):
            to = await both.accept()
            await both.target.end(MIGRATION)
            assert not _listens(to)


async def test_a_restarted_source_does_not_begin_a_stream_again() -> None:
    async with pair() as both:
        to = await both.accept()
        with pytest.raises(MigrationFailed, match="restarted"):
            await both.send(to, again=True)
        assert (await both.send(to, again=True, left=True)).whole  # its state had left before
        await both.send(to)
        assert both.qemu.came


async def test_what_an_agent_that_died_left_is_swept() -> None:
    async with pair() as both:
        stale = both.folder / "source" / FOLDER / MIGRATION
        stale.parent.mkdir(parents=True)
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(stale))
        left.close()
        both.source.sweep()
        both.nothing_is_left()


async def test_an_impostor_at_the_machines_socket_is_told_nothing(tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "elsewhere"))
    listening.listen(1)
    (tmp_path / "stream-1").symlink_to(tmp_path / "elsewhere")
    mine = os.geteuid()
    connected(tmp_path / "stream-1", mine).close()
    with pytest.raises(PermissionError):
        connected(tmp_path / "stream-1", mine + 1)
    listening.close()


async def test_one_machine_shares_no_page_with_another(tmp_path: Path) -> None:
    pages = PageCache(tmp_path, 8 << 20)
    assert pages.scope("vm 1").secret != pages.scope("vm 2").secret
    assert pages.scope("vm 1") is pages.scope("vm 1")
    pages.close()


def test_the_proxy_alone_keeps_to_the_bandwidth() -> None:
    goals = Goals(bandwidth_bytes_per_s=5 << 20)
    assert source_parameters(goals, "key")["max-bandwidth"] == 5 << 20
    proxied = source_parameters(goals, "", proxied=True)
    assert (proxied["max-bandwidth"], proxied["max-postcopy-bandwidth"], proxied["tls-creds"]) == (0, 0, "")


def _listens(at: moving.ReceptionAt) -> bool:
    try:
        socket.create_connection((at.host, at.port), 1).close()
    except OSError:
        return False
    return True
