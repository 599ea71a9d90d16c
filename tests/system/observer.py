"""The outside observer: looks at processes, at what guests say on their serial lines, and at records at every server.

It takes no part and believes nobody. What it saw is judged by one function for each invariant that can be seen from
outside (the numbers are those of the fault matrix): I1 `never_two`, `one_life`; I2 `only_grows`; I3 `kept`; I5 and I6
`in_order`; I9 `nothing_secret`; I10 `untouched`; and `fences_have_reasons`. Seen elsewhere: I4 and I11 in histories of
the stores and in simulations, I7 where guests have disks, I8 and I12 have no part in what fails here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

from novacron.client import nodes, vms
from novacron.client.asynchronous import AsyncClient
from novacron.errors import NovaCronError
from novacron.lab.processes import run_dir
from tests.system.cluster_site import ClusterSite, until
from tests.system.watch import TICK

LOOK_S = 0.02
READ_S = 0.25
YOUNG_S = 3.0
BOOT_TICKS = 3
LOST_TICKS = 3
"""A tick that was on the line while its machine moved may be lost or cut in two; more are not."""


@dataclasses.dataclass(frozen=True)
class Copies:
    """From that moment on these processes of a VM lived, by node."""

    at_s: float
    pids: dict[str, int]


@dataclasses.dataclass
class Run:
    """Ticks that a guest made one after the other on one node."""

    node: str
    first: int
    last: int
    bad: int = 0


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one server said of a record. number: a VM's generation, a node's epoch."""

    server: str
    about: str
    number: int
    revision: int
    state: str
    reason: str


# -- invariants, each over what was seen -----------------------------------------------------------------------


def never_two(seen: Sequence[Copies]) -> list[str]:
    """I1, by processes: no two QEMUs of a VM that does not move live at the same time, wherever."""
    return [f"two copies lived at {one.at_s:.2f} s: {one.pids}" for one in seen if len(one.pids) > 1]


def one_life(runs: Sequence[Run]) -> list[str]:
    """I1, by the guest itself: its ticks are one line. It goes on where it stood (it moved), or begins anew (it was
    booted); it never goes on anywhere from a past that another copy has gone on from. And its memory is its own.
    """
    wrong = [f"{run.bad} pages on {run.node} are not what the guest wrote" for run in runs if run.bad]
    for before, run in itertools.pairwise(runs):
        if not _goes_on(before, run) and run.first > BOOT_TICKS:
            wrong.append(f"tick {run.first} on {run.node} after tick {before.last} on {before.node}")
    return wrong


def apart(runs: Sequence[Run]) -> tuple[list[Run], int]:
    """The lives without what one that was left behind ticked after another had begun elsewhere, and how many ticks
    those were: a host that stood still as a whole, and has no watchdog, goes on for as long as its kernel takes to end
    what is overdue. Only what goes on exactly where its node's last life stood counts for that.
    """
    kept_runs: list[Run] = []
    behind = 0
    for run in runs:
        here = kept_runs[-1] if kept_runs else None
        left = [one for one in kept_runs[:-1] if one.node == run.node][-1:]
        if here is not None and here.node != run.node and any(_goes_on(one, run) for one in left):
            behind += run.last - run.first + 1
        elif here is not None and here.node == run.node and _goes_on(here, run):
            kept_runs[-1] = dataclasses.replace(here, last=run.last, bad=here.bad + run.bad)
        else:
            kept_runs.append(run)
    return kept_runs, behind


def _goes_on(before: Run, run: Run) -> bool:
    return before.last < run.first <= before.last + 1 + LOST_TICKS


def only_grows(readings: Iterable[Reading]) -> list[str]:
    """I2: whoever reads at one server never sees a generation, an epoch or a revision go back."""
    last: dict[tuple[str, str], Reading] = {}
    wrong = []
    for now in readings:
        before = last.get((now.server, now.about))
        if before is not None and (now.number < before.number or now.revision < before.revision):
            wrong.append(f"{now.server} said {before} and then {now}")
        last[now.server, now.about] = now
    return wrong


def fences_have_reasons(readings: Iterable[Reading]) -> list[str]:
    """Whenever a node is said to be fencing or fenced, it is said why."""
    fenced = [one for one in readings if one.state in ("fencing", "fenced")]
    return [f"{one.server} gave no reason: {one}" for one in fenced if not one.reason]


def kept(acknowledged: int, found: int) -> list[str]:
    """I3: what was acknowledged to a writer is there afterwards."""
    return [f"write {acknowledged} was acknowledged, {found} is there"] if found < acknowledged else []


def untouched(seen: Sequence[Copies], runs: Sequence[Run]) -> list[str]:
    """I10: a VM that the fault did not touch has run on, as the same process and without a boot."""
    found = [one.pids for one in seen]
    return [] if len(found) == 1 and len(runs) == 1 else [f"a VM that nobody touched lived as {found}, ticked {runs}"]


def nothing_secret(texts: Iterable[str], secrets: Iterable[str]) -> list[str]:
    """I9: no secret stands in an argument list or a log."""
    told = "\0".join(texts)
    return [f"a secret was told: {secret[:4]}…" for secret in secrets if secret in told]


async def in_order(site: ClusterSite, observer: Observer) -> None:
    """I5 and I6, once all is whole again: each VM runs where its record says, ticks, and no other process of it or of
    a VM that there is no more lives anywhere.
    """

    async def so() -> bool:
        for vm_id in observer.vm_ids:
            vm = await site.client.do(vms.get(vm_id))
            if vm.state != "running" or vm.task is not None or vm.problem is not None or vm.migration_id is not None:
                return False
            if observer.copies[vm_id][-1].pids != {str(vm.node): site.host_pid(vm)}:
                return False
        return not observer.strangers

    await until(so, "not all is in order", lambda: (observer.strangers, observer.copies, observer.runs))
    for vm_id in observer.vm_ids:
        await observer.ticks(vm_id)


# -- looking -----------------------------------------------------------------------------------------------------


class Observer:
    """What was seen so far. vm_ids: whom it looks at; `strangers`: QEMUs of the site that are nobody's of these."""

    def __init__(self, site: ClusterSite, vm_ids: Sequence[str]) -> None:
        self.vm_ids = tuple(vm_ids)
        self.copies: dict[str, list[Copies]] = {vm_id: [] for vm_id in vm_ids}
        self.runs: dict[str, list[Run]] = {vm_id: [] for vm_id in vm_ids}
        self.readings: list[Reading] = []
        self.strangers: dict[int, str] = {}
        self.arguments: set[str] = set()
        self._site = site
        self._places = {node: {vm_id: run_dir(site.path / node) / vm_id for vm_id in vm_ids} for node in site.hosts}
        self._known: dict[int, tuple[float, tuple[str, str] | None]] = {}  # pid → since when, whose on which node
        self._read: dict[Path, tuple[int, int]] = {}
        self._began_s = time.monotonic()
        self._skip_past()

    async def watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    async def read(self, server: str, reader: AsyncClient) -> None:
        """Ask that server what it knows, again and again, whatever befalls it."""
        while True:
            with contextlib.suppress(NovaCronError):
                for vm in (await reader.do(vms.search())).items:
                    said = (vm.generation, vm.revision, vm.state, "")
                    self.readings.append(Reading(server, f"vm {vm.id}", *said))
                for node in (await reader.do(nodes.search())).items:
                    said = (node.epoch or 0, node.revision, node.state, node.state_reason)
                    self.readings.append(Reading(server, f"node {node.name}", *said))
            await asyncio.sleep(READ_S)

    def look(self) -> None:
        found, self.strangers = self._processes()
        for vm_id, seen in self.copies.items():
            pids = found.get(vm_id, {})
            if not seen or seen[-1].pids != pids:
                seen.append(Copies(time.monotonic() - self._began_s, pids))
            self._take_ticks(vm_id)

    async def ticks(self, vm_id: str, more: int = 3) -> None:
        """Return when that guest has ticked on."""
        before = self._count(vm_id)

        async def so() -> bool:
            return self._count(vm_id) >= before + more

        await until(so, "a guest does not tick", lambda: (self.runs[vm_id][-3:], self.copies[vm_id][-3:]))

    async def boots(self, vm_id: str, node: str) -> float:
        """When the guest was first seen to tick in a life that it began on that node."""
        at_s = 0.0

        async def so() -> bool:
            nonlocal at_s
            at_s = time.monotonic()
            return self.runs[vm_id][-1].node == node and self.runs[vm_id][-1].first <= BOOT_TICKS

        await until(so, f"no guest booted on {node}", lambda: self.runs[vm_id][-3:])
        return at_s

    async def lasts(self, seconds: float) -> None:
        """Return when all guests have ticked on for so long: that nothing happens can only be seen over time."""
        await self.lasts_but("", seconds)

    async def lasts_but(self, lost: str, seconds: float) -> None:
        """Likewise, of all but that VM."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            for vm_id in self.vm_ids:
                if vm_id != lost:
                    await self.ticks(vm_id)

    async def is_gone(self, vm_id: str) -> None:
        """Return when no process of it lives."""

        async def so() -> bool:
            return not self.copies[vm_id][-1].pids

        await until(so, "a machine does not end", lambda: self.copies[vm_id])

    async def process(self, vm_id: str, node: str) -> int:
        """The VM's process on that node, once there is one."""

        async def so() -> bool:
            return node in self.copies[vm_id][-1].pids

        await until(so, f"there is no process on {node}", lambda: self.copies[vm_id])
        return self.copies[vm_id][-1].pids[node]

    async def is_alone(self, vm_id: str) -> None:
        """Return when one process of it lives."""

        async def so() -> bool:
            return len(self.copies[vm_id][-1].pids) == 1

        await until(so, "another copy does not end", lambda: self.copies[vm_id])

    def _count(self, vm_id: str) -> int:
        return sum(run.last - run.first + 1 for run in self.runs[vm_id])

    def _processes(self) -> tuple[dict[str, dict[str, int]], dict[int, str]]:
        """Of each VM: the process on each node. And what lives of others."""
        found: dict[str, dict[str, int]] = {}
        strangers: dict[int, str] = {}
        now_s, living = time.monotonic(), {int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()}
        for pid in self._known.keys() - living:
            del self._known[pid]
        for pid in living:
            since_s, whose = self._known.get(pid, (now_s, None))
            if whose is None and now_s - since_s < YOUNG_S:  # one that was just forked becomes somebody else
                whose = self._whose(pid)
            self._known[pid] = since_s, whose
            if whose is None or is_dead(pid):
                continue
            node, vm_id = whose
            if vm_id in self.copies:
                found.setdefault(vm_id, {})[node if node not in found.get(vm_id, {}) else f"{node} again"] = pid
            else:
                strangers[pid] = f"{vm_id} on {node}"
        return found, strangers

    def _whose(self, pid: int) -> tuple[str, str] | None:
        """Node and VM of a QEMU of the site."""
        with contextlib.suppress(OSError, ValueError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            place = Path(f"/proc/{pid}/cwd").readlink()
            if not place.is_relative_to(self._site.path):
                return None
            self.arguments.add(words.decode(errors="replace"))
            if b"qemu-system" in words.partition(b"\0")[0]:
                return place.relative_to(self._site.path).parts[0], place.name
        return None

    def _skip_past(self) -> None:
        """Lives before this observer's are not its own."""
        for places in self._places.values():
            for place in places.values():
                with contextlib.suppress(OSError):
                    stat = (place / "console.log").stat()
                    self._read[place] = stat.st_ino, stat.st_size

    def _take_ticks(self, vm_id: str) -> None:
        runs = self.runs[vm_id]
        here = runs[-1].node if runs else ""
        for node in sorted(self._places, key=lambda name: name != here):  # who ticked last is heard out first
            for seq, bad in self._new_ticks(self._places[node][vm_id]):
                last = runs[-1] if runs else None
                if last is not None and last.node == node and last.last < seq <= last.last + 1 + LOST_TICKS:
                    last.last, last.bad = seq, last.bad + bad
                else:
                    runs.append(Run(node, seq, seq, bad))

    def _new_ticks(self, place: Path) -> list[tuple[int, int]]:
        with contextlib.suppress(OSError), (place / "console.log").open("rb") as file:
            stat, (which, offset) = os.fstat(file.fileno()), self._read.get(place, (0, 0))
            file.seek(offset if which == stat.st_ino and offset <= stat.st_size else 0)
            start, text = file.tell(), file.read()
            whole = text.rfind(b"\n") + 1
            self._read[place] = stat.st_ino, start + whole
            return [(int(seq, 16), int(bad, 16)) for seq, bad in TICK.findall(text[:whole])]
        return []


def is_dead(pid: int) -> bool:
    """Whether it is gone, or a zombie: dead, and not yet waited for."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@contextlib.asynccontextmanager
async def observed(
    site: ClusterSite, *machines: vms.Vm, moves: bool = False, behind: int = 0
) -> AsyncIterator[Observer]:
    """Looks all the while; afterwards, all healed, everything is in order and nothing was ever wrong.

    The first is whom the fault strikes; the others nobody touches. moves: it migrates, or its process is stopped where
    it was, so that for a time two processes are right, and the guest's ticks alone say which one runs. behind: so many
    ticks a copy that was left behind may make when its host goes on (`apart`).
    """
    observer = Observer(site, [vm.id for vm in machines])
    work = [observer.watch(), *(observer.read(name, reader) for name, reader in site.readers.items())]
    tasks = [asyncio.create_task(one) for one in work]
    try:
        for vm in machines:
            await observer.ticks(vm.id)
        yield observer
        await site.heal()
        await in_order(site, observer)
    except BaseException:
        sys.stderr.write(site.last_words())
        raise
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [one for one in ended if not isinstance(one, asyncio.CancelledError)], ended
    wrong = everything_wrong(site, observer, moves=moves, behind=behind)
    assert not wrong, "\n".join(wrong)


def everything_wrong(site: ClusterSite, observer: Observer, *, moves: bool, behind: int) -> list[str]:
    struck, *others = observer.vm_ids
    wrong = [] if moves else never_two(observer.copies[struck])
    lives, ticks = apart(observer.runs[struck]) if behind else (observer.runs[struck], 0)
    wrong += one_life(lives) + ([f"{ticks} ticks of a copy that was left behind"] if ticks > behind else [])
    for vm_id in others:
        wrong += one_life(observer.runs[vm_id])
    for vm_id in others:
        wrong += untouched(observer.copies[vm_id], observer.runs[vm_id])
    logs = [line for file in site.path.glob("*.log") for line in file.read_text(errors="replace").splitlines()]
    logs = [line for line in logs if "admin token, shown this once" not in line]  # to whoever starts the first server
    secrets = [site.token, (site.path / "agent.secret").read_text().strip()]
    wrong += nothing_secret([*observer.arguments, *logs], secrets)
    return wrong + only_grows(observer.readings) + fences_have_reasons(observer.readings)
