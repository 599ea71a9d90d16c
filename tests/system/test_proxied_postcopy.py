"""Post-copy through the stream proxies: an end of the stream that is lost is a broken link, and another is made."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from novacron.agent.drivers.base import Departure, Reception
from novacron.agent.proxies import FOLDER, Proxies
from novacron.agent.stream.figures import Settings
from novacron.model.machine import MachineStatus
from novacron.model.migration import Goals, Strategy, Tactics
from novacron.wire import agent as wire
from tests.system.rom_machine import NOBODY, hosts, needs_qemu
from tests.system.rom_move import LOOPBACK, Move, nothing, postcopy_allowed

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    needs_qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="the kernel's leave for post-copy needs root"),
]
GOALS = Goals(bandwidth_bytes_per_s=32 << 10)  # of pages with a number each: seconds
SETTINGS = Settings(window_bytes=4 << 20, deadline_s=20)  # so that most of what is left is at the source
SENT = Tactics(strategy=Strategy.POSTCOPY)


class Proxied:
    """A machine that moves, and the proxies of its two hosts."""

    def __init__(self, move: Move, folder: Path) -> None:
        self.move = move
        self.source, self.target = (
            Proxies(LOOPBACK, folder / end, lambda _: NOBODY, settings=SETTINGS) for end in ("source", "target")
        )
        self.proxy = wire.Proxy(peer=LOOPBACK, scope="tests")
        self.spec = move.launch(move.one).spec

    async def until_it_runs(self) -> asyncio.Task[object]:
        """It runs at the target, and the source follows what is left."""
        move, vm_id, migration_id = self.move, self.move.vm_id, self.move.migration_id
        await move.source.start(move.launch(move.one))
        await move.one.ticking(vm_id, 30)  # it has written to all it writes to
        at = await self.target.accept(move.target, move.launch(move.other), migration_id, self.proxy)
        verb = wire.Send(vm_id=vm_id, generation=1, migration_id=migration_id, to=at, goals=GOALS, tactics=SENT)

        async def act(to: Reception) -> Departure:
            return await move.send(to, SENT, GOALS)

        departure = await self.source.send(verb, self.spec, act, again=False, left=False)
        assert not departure.whole
        await move.source.open_postcopy(vm_id, migration_id)
        await move.take_over()
        return asyncio.create_task(move.source.fetch_rest(vm_id, migration_id, nothing))

    async def made_anew(self) -> None:
        """Another stream, through other proxies, to the end."""
        move = self.move
        at = await self.target.reopen(move.target, self.spec, move.migration_id, self.proxy)
        verb = wire.FetchRest(vm_id=move.vm_id, generation=2, migration_id=move.migration_id, to=at)
        to = await self.source.again(verb, self.spec)
        rest = await move.source.fetch_rest(move.vm_id, move.migration_id, nothing, to)
        assert rest.done, rest.why


@asynccontextmanager
async def proxied() -> AsyncIterator[Proxied]:
    with postcopy_allowed(), tempfile.TemporaryDirectory(prefix="nc-postcopy-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        for end in ("source", "target"):
            (folder / end).mkdir(mode=0o711)
        async with hosts(NOBODY) as two:
            move = Move(two)
            facts = await move.source.probe()
            if "postcopy" not in facts.features:
                pytest.skip("no post-copy here")
            made = Proxied(move, folder)
            yield made
            await made.source.close()
            await made.target.close()
            assert list((folder / "source" / FOLDER).iterdir()) == []
            assert list((move.other.root / move.vm_id).glob("stream-*")) == []


@pytest.mark.parametrize("lost", ["source", "target"])
async def test_a_stream_that_lost_an_end_in_post_copy_is_made_anew(lost: str) -> None:
    async with proxied() as one:
        fetching = await one.until_it_runs()
        await (one.source if lost == "source" else one.target).end(one.move.migration_id)
        rest = await asyncio.wait_for(fetching, 30)
        assert not rest.done  # type: ignore[attr-defined]
        await one.made_anew()
        assert one.move.at_target() is MachineStatus.RUNNING
        measured = await one.move.finish()
        figures = one.source.figured(one.move.migration_id, measured)
        assert figures.stream_bytes
        assert figures.bytes_transferred
        assert figures.bytes_transferred < figures.stream_bytes
