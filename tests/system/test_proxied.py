"""Real migrations through the stream proxies of real agents: whoever is killed or cut off there, one copy lives on."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from novacron.client import migrations, vms
from novacron.lab.lab import Lab
from novacron.lab.rom import rom
from tests.system.postcopy_setting import postcopy_allowed
from tests.system.rom_image import an_image
from tests.system.spine import END_S, a_lab, a_vm, last_tick, living_copies, needs_guest, restart, ticks_on

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_guest]
PAGES, WSS = 32, 2048
NOISY = "noisy"  # an image whose guest's pages nothing makes smaller, and no node holds; of `ticker` each is one number
SLOW = 1 << 20  # bytes/s on the wire: all pages of such a guest take eight seconds
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces, and the kernel's leave for post-copy, need root")
LATE_S = 12.0  # after a silence that no direct stream is given up for, and a proxy's own patience begins to count


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def lab() -> AsyncIterator[Lab]:
    with postcopy_allowed():
        async with a_lab_of_both() as made:
            yield made


@pytest.fixture
async def vm(lab: Lab) -> AsyncIterator[vms.Vm]:
    async with a_full_vm(lab, NOISY) as made:
        yield made


@asynccontextmanager
async def a_lab_of_both(*, bridged: bool = False) -> AsyncIterator[Lab]:
    async with a_lab(bridged=bridged, pages=PAGES, wss_pages=WSS) as made:
        guest = rom(made.path / "roms", pages_per_tick=PAGES, wss_pages=WSS, button=True, noise=True)
        await an_image(made.client, NOISY, guest)
        yield made


@asynccontextmanager
async def a_full_vm(lab: Lab, image: str) -> AsyncIterator[vms.Vm]:
    """One whose guest has written to all it ever writes to."""
    async with a_vm(lab, image=image) as made:
        async with asyncio.timeout(END_S):
            while (await last_tick(lab, made.id))[0] <= WSS // PAGES:
                await asyncio.sleep(0.05)
        yield made


async def begin(lab: Lab, vm: vms.Vm, **wish: object) -> migrations.Migration:
    asked = migrations.MigrationCreate(vm=vm.id, transport="proxy", **wish)  # type: ignore[arg-type]
    return await lab.client.do(migrations.create(asked))


async def under_way(lab: Lab, begun: migrations.Migration, step: str = "send") -> migrations.Migration:
    """Once it has begun that step, and sent something."""
    async with asyncio.timeout(END_S):
        while step not in begun.steps_begun or begun.progress is None or not begun.progress.transferred_bytes:
            assert not begun.is_final, begun.problem
            begun = await lab.client.do(migrations.get(begun.id))
    return begun


async def begin_slowly(lab: Lab, vm: vms.Vm, kind: str = "live") -> migrations.Migration:
    """warm: it comes to its end in one pass."""
    begun = await begin(lab, vm, kind=kind, bandwidth_bytes_per_s=SLOW, may_pause=True, never_postcopy=True)
    return await under_way(lab, begun)


async def it_moved(
    lab: Lab, vm: vms.Vm, begun: migrations.Migration, patience_s: float = END_S
) -> migrations.Migration:
    done = await lab.client.wait_migration(begun.id, deadline_s=patience_s)
    assert done.state == "completed", done.problem
    moved = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert moved.node_id == done.target_node_id
    assert len(living_copies(vm.id)) == 1  # nodes of a bridged lab count processes of their own
    await ticks_on(lab, vm.id)
    nothing_is_left(lab, vm)
    return done


async def it_stayed(lab: Lab, vm: vms.Vm, begun: migrations.Migration, state: str) -> migrations.Migration:
    done = await lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert done.state == state, done.problem
    stayed = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert (stayed.node_id, stayed.pid) == (vm.node_id, vm.pid)
    async with asyncio.timeout(END_S):
        while len(living_copies(vm.id)) != 1:
            await asyncio.sleep(0.02)
    await ticks_on(lab, vm.id)
    nothing_is_left(lab, vm)
    return done


def nothing_is_left(lab: Lab, vm: vms.Vm) -> None:
    """No socket of a stream, on either node."""
    places = [lab.path / name / "run" for name in lab.nodes]
    assert [left for run in places for left in ((run / "streams").glob("*"))] == []
    assert [left for run in places for left in (run / vm.id).glob("stream*")] == []


async def test_a_guest_moves_through_the_proxies_and_back_at_a_fraction_of_the_bytes(lab: Lab) -> None:
    async with a_full_vm(lab, "ticker") as vm:
        first = await it_moved(lab, vm, await begin(lab, vm))
        figures = first.figures
        assert first.transport == "proxy"
        assert figures.stream_bytes
        assert figures.bytes_transferred
        assert figures.stream_bytes > 5 * figures.bytes_transferred  # its pages hold one number each
        assert any("through the stream proxies: asked for" in words for words in first.explanation)
        back = await it_moved(lab, vm, await begin(lab, vm))
        assert back.target_node_id == first.source_node_id
        again = await it_moved(lab, vm, await begin(lab, vm))
        assert again.figures.pages_held  # the target has had this machine before


async def test_over_a_slow_link_the_guest_runs_while_its_memory_is_sent(lab: Lab) -> None:
    """What waits in the proxies counts as sent with QEMU: were it much, the guest would stand still for all of it."""
    guest = rom(lab.path / "roms", pages_per_tick=1, wss_pages=WSS, button=True, noise=True)
    await an_image(lab.client, "quiet", guest)
    async with a_vm(lab, image="quiet") as vm:
        figures = (await it_moved(lab, vm, await begin(lab, vm, bandwidth_bytes_per_s=SLOW))).figures
    assert figures.transfer_ms
    assert figures.downtime_stopped_ms
    assert figures.downtime_stopped_ms < figures.transfer_ms / 4


async def test_a_slow_link_takes_the_proxies_by_itself_and_may_be_told_not_to(lab: Lab, vm: vms.Vm) -> None:
    wish = migrations.MigrationCreate(vm=vm.id, bandwidth_bytes_per_s=4 << 20)
    begun = await lab.client.do(migrations.create(wish))
    done = await it_moved(lab, vm, begun)
    assert done.transport == "proxy"
    assert any("is the bottleneck" in words for words in done.explanation)
    direct = migrations.MigrationCreate(vm=vm.id, transport="direct")
    other = await it_moved(lab, vm, await lab.client.do(migrations.create(direct)))
    assert (other.transport, other.figures.stream_bytes) == ("direct", None)


async def test_the_source_agent_killed_in_the_middle_costs_only_the_attempt(lab: Lab, vm: vms.Vm) -> None:
    begun = await begin_slowly(lab, vm)
    await restart(lab, begun.source_node)
    done = await it_stayed(lab, vm, begun, "rolled_back")
    assert done.problem is not None
    assert "restarted" in done.problem.message


async def test_the_target_agent_killed_in_the_middle_costs_only_the_attempt(lab: Lab, vm: vms.Vm) -> None:
    begun = await begin_slowly(lab, vm)
    began_s = time.monotonic()
    await restart(lab, begun.target_node)
    done = await it_stayed(lab, vm, begun, "rolled_back")
    assert time.monotonic() - began_s < 25  # not the patience it has with a link
    assert done.problem is not None


async def test_a_source_whose_agent_stays_dead_runs_on(lab: Lab, vm: vms.Vm) -> None:
    begun = await begin_slowly(lab, vm)
    console = lab.path / begun.source_node / "run" / vm.id / "console.log"
    agent = lab.children[begun.source_node]
    agent.kill()
    try:
        before = console.stat().st_size
        async with asyncio.timeout(END_S):
            while console.stat().st_size <= before + 200:  # it ticks, and QEMU waits for nobody
                await asyncio.sleep(0.05)
    finally:
        agent.start_again()
    await it_stayed(lab, vm, begun, "rolled_back")


async def test_a_server_killed_in_the_middle_is_followed_by_another(lab: Lab, vm: vms.Vm) -> None:
    begun = await begin_slowly(lab, vm, "warm")
    await restart(lab, "server")
    await it_moved(lab, vm, begun, patience_s=2 * END_S)


@needs_root
@asynccontextmanager
async def _linked() -> AsyncIterator[tuple[Lab, vms.Vm]]:
    """Two nodes on links of their own, and a VM."""
    async with a_lab_of_both(bridged=True) as lab, a_full_vm(lab, NOISY) as vm:
        yield lab, vm


@needs_root
async def test_over_a_dead_link_it_is_cancelled_at_once_and_over_a_cut_one_it_carries_on() -> None:
    async with _linked() as (lab, vm):
        pair = lab.between("node-1", "node-2")
        begun = await begin_slowly(lab, vm)
        pair.cut()
        await asyncio.sleep(LATE_S / 4)  # it may go on for as long as it likes now: nothing passes
        began_s = time.monotonic()
        await lab.client.do(migrations.cancel(begun.id))
        done = await lab.client.wait_migration(begun.id, deadline_s=END_S)
        assert time.monotonic() - began_s < 3
        assert done.state == "cancelled"
        pair.mend()
        await it_stayed(lab, vm, begun, "cancelled")

        begun = await begin_slowly(lab, vm, "warm")
        pair.cut()
        await asyncio.sleep(LATE_S)
        seen, _ = await last_tick(lab, vm.id)
        pair.mend()
        await it_moved(lab, vm, begun, patience_s=2 * END_S)
        assert (await last_tick(lab, vm.id))[0] > seen
