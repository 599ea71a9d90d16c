"""Strikes at the QEMUs of a migration and at the link between them, and what may come of each."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from novacron.client import migrations, vms
from novacron.client.goals import vm_settles
from novacron.client.vms import Vm
from tests.system.disk_site import Site
from tests.system.points import Points, thaw
from tests.system.spine import END_S
from tests.system.watch import Watch, home, qemus

SOON_S = 20.0
FROZEN_S = 4.0  # longer than a heartbeat; the time itself is the fault
TRICKLE = 4 << 20  # bytes/s: a transfer that lasts, and comes to an end only because the guest may be paused
SLOWLY = {"bandwidth_bytes_per_s": TRICKLE, "transport": "direct", "may_pause": True}
DURING = ("send:during", "copy_disks:during")

SEED = int(os.environ.get("NOVACRON_CHAOS_SEED", "1"))
ALL = bool(os.environ.get("NOVACRON_CHAOS_ALL"))
PLACES = int(os.environ.get("NOVACRON_CHAOS_PLACES", "4"))


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A way to move: its steps, what asks for it, and where the machine's disks are."""

    steps: tuple[str, ...]
    wish: migrations.MigrationCreate
    pool: str = "nas"

    @property
    def places(self) -> list[str]:
        """In order, where it can be struck: before and after each step, and in the middle of what takes its time."""
        found = []
        for step in self.steps:
            middle = [place for place in DURING if place.startswith(f"{step}:")]
            found += [f"{step}:began", *middle, f"{step}:did"]
        return found

    def before(self, one: str, other: str) -> bool:
        return self.places.index(one) < self.places.index(other)


_STREAMED = ("accept", "send", "commit", "take_over", "verify", "release")


def _wish(kind: str = "live", strategy: str | None = None) -> migrations.MigrationCreate:
    return migrations.MigrationCreate(vm="one", kind=kind, strategy=strategy, measure=False)


WAYS = {
    "live": Way(steps=_STREAMED, wish=_wish("live", "precopy")),
    "warm": Way(steps=_STREAMED, wish=_wish("warm")),
    "postcopy": Way(
        steps=("accept", "send", "commit", "open_postcopy", "take_over", "fetch_rest", "verify", "release"),
        wish=_wish("live", "postcopy"),
    ),
    "disks": Way(steps=("accept", "copy_disks", *_STREAMED[1:]), wish=_wish("live", "precopy"), pool="local"),
}


def chosen(places: list[str], story: str) -> list[str]:
    """Some of them, the same each time; all of them when NOVACRON_CHAOS_ALL is set."""
    if ALL or len(places) <= PLACES:
        return places
    picked = random.Random(f"{SEED} {story}").sample(places, PLACES)
    return [place for place in places if place in picked]


# -- what is done ------------------------------------------------------------------------------------------------


async def kill(site: Site, vm_id: str, node: str) -> None:
    """It is dead when this returns."""
    watching = os.pidfd_open(qemus(site.lab, vm_id)[node])
    try:
        signal.pidfd_send_signal(watching, signal.SIGKILL)
        async with asyncio.timeout(END_S):
            while not select.select([watching], [], [], 0)[0]:  # all its threads
                await asyncio.sleep(0.01)
    finally:
        os.close(watching)


async def freeze(site: Site, vm_id: str, node: str) -> None:
    """For a while; what has become of it then is thawed."""
    pid = qemus(site.lab, vm_id)[node]
    os.kill(pid, signal.SIGSTOP)
    asyncio.get_running_loop().call_later(FROZEN_S, _thaw, pid)


def _thaw(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return  # it was ended meanwhile, frozen as it was


async def cut(site: Site, vm_id: str, node: str) -> None:
    """The link between the two, for a while."""
    pair = site.lab.between(*site.lab.nodes)
    pair.cut()
    asyncio.get_running_loop().call_later(FROZEN_S, pair.mend)


Strike = Callable[[Site, str, str], Awaitable[None]]
STRIKES: dict[str, tuple[Strike, str]] = {
    "source killed": (kill, "source"),
    "target killed": (kill, "target"),
    "source frozen": (freeze, "source"),
    "target frozen": (freeze, "target"),
    "link cut": (cut, ""),
}


def has_subject(way: Way, what: str, place: str) -> bool:
    """Whether whom it strikes is there at that place."""
    if what.startswith("target"):
        return way.before("accept:began", place)
    return way.before(place, "release:did") or what == "link cut"


def may_be_lost(way: Way, what: str, place: str) -> bool:
    """Whether at that place only he who is killed has all that the guest is."""
    whole = "fetch_rest:did" if "fetch_rest" in way.steps else "send:did"
    if what == "source killed":
        return way.before(place, whole)
    return what == "target killed" and not way.before(place, "take_over:did")


async def struck(site: Site, points: Points, way: Way, vm: Vm, what: str, place: str) -> migrations.Migration:
    """A move that is struck there; its record at the end."""
    strike, who = STRIKES[what]
    there = next(node for node in site.lab.nodes if node != vm.node)
    node = there if who == "target" else str(vm.node)
    server = site.lab.children["server"]
    during = place in DURING
    if not during:
        points.arm(f"conductor.{place}", "freeze")
    wish = msgspec.structs.replace(way.wish, **(SLOWLY if during else {}))
    begun = await site.do(migrations.create(wish))
    if during:
        await under_way(site, begun.id, disks=place == "copy_disks:during")
        await strike(site, vm.id, node)
    else:
        await points.holds(f"conductor.{place}", server)
        try:
            await strike(site, vm.id, node)
        finally:
            thaw(server)
    return await site.lab.client.wait_migration(begun.id, deadline_s=2 * END_S)


async def under_way(site: Site, migration_id: str, *, disks: bool) -> None:
    async with asyncio.timeout(END_S):
        while True:
            seen = await site.do(migrations.get(migration_id))
            at = seen.progress
            if at is not None and (at.disk_copied_bytes if disks else at.transferred_bytes):
                return
            assert not seen.is_final, seen.problem
            await asyncio.sleep(0.02)


# -- what came of it -----------------------------------------------------------------------------------------------


async def settled(site: Site, vm_id: str) -> Vm:
    """The VM once its record and its processes agree: it runs where that says, or has crashed and none is left."""
    seen, alive = await site.do(vms.get(vm_id)), qemus(site.lab, vm_id)
    try:
        async with asyncio.timeout(END_S):
            while True:
                seen, alive = await site.do(vms.get(vm_id)), qemus(site.lab, vm_id)
                wanted = {"running": {seen.node}, "error": set()}.get(seen.state)
                if seen.task is None and wanted == set(alive):
                    return seen
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"it is {seen.state} on {seen.node} ({seen.problem}), and alive are {alive}") from None


async def revived(site: Site, vm: Vm, watch: Watch) -> Vm:
    """One that crashed says so, and starts again."""
    assert vm.problem is not None
    assert vm.problem.remedy == "novacron vm start one"
    watch.boots_anew()
    await site.do(vms.start(vm.id))
    return await site.lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)


def may_be_kept(way: Way, what: str, done: migrations.Migration) -> bool:
    """Whether what came of its disks may stay for the next move to go on with: its source has run all the while."""
    copied = way.pool == "local" and "copy_disks" in done.steps_begun
    return copied and done.state == "rolled_back" and not what.startswith("source")


def copy_at(site: Site, volume_id: str, node: str | None) -> Path:
    """The file of that volume that its node works with."""
    paths = site.copies(volume_id)
    return next((path for path in paths if node in path.parts), paths[0])


async def nothing_is_left(site: Site, vm: Vm, *, but_copies: bool = False) -> None:
    """Of the machine, on the node where it is not."""
    other = next(node for node in site.lab.nodes if node != vm.node)
    try:
        async with asyncio.timeout(SOON_S):
            while left := _left(site, vm, home(site.lab, other, vm.id), but_copies):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"left on {other}: {left}") from None


def _left(site: Site, vm: Vm, at: Path, but_copies: bool) -> list[Path]:
    copies = [] if but_copies else [site.copies(disk.volume_id) for disk in vm.disks]
    return [*at.glob("*"), *(path for paths in copies if len(paths) > 1 for path in paths)]
