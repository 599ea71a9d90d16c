"""Frozen file systems are thawed, whatever happens. The guest's agent is played here: it speaks over QEMU's socket.

What a real guest does with its file systems is shown by tests that boot one.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from novacron.agent.drivers.base import Launch
from novacron.agent.drivers.qemu import record, snapshot
from novacron.agent.drivers.qemu.machine import GUEST_AGENT_SOCKET
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.errors import DriverError, MonitorFailed, Unsupported
from novacron.model.snapshot import Consistency
from tests.system import rom_machine
from tests.system.rom_machine import Hosts, an_id, needs_qemu, until, with_spec
from tests.system.test_snapshots import Subject, points

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]


class Guest:
    """The agent in a guest: what it was told, and how it answers."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.silent_on: set[str] = set()
        self.refuses: set[str] = set()
        self.frozen = 0
        self._serving: set[asyncio.Task[None]] = set()

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        task = asyncio.get_running_loop().create_task(self._serve(theirs))
        self._serving.add(task)
        return ours

    async def _serve(self, side: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=side)
        while line := await reader.readline():
            asked = json.loads(line.lstrip(b"\xff"))
            command = asked["execute"]
            if command == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": asked["arguments"]["id"]}).encode() + b"\n")
                continue
            self.told.append(command)
            if command in self.silent_on:
                continue
            if command in self.refuses:
                writer.write(json.dumps({"error": {"class": "GenericError", "desc": "no \x1bway"}}).encode() + b"\n")
                continue
            self.frozen = 2 if command == "guest-fsfreeze-freeze" else 0
            writer.write(b'{"return": 2}\n')
        writer.close()

    async def end(self) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


class Quiet(Subject):
    def launch(self, host: Any = None) -> Launch:
        return with_spec(super().launch(host), guest_agent=True)


@pytest.fixture
async def guest(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Guest]:
    made, connect = Guest(), RunDir.connect

    def connected(self: RunDir, name: str) -> socket.socket:
        return made.connect() if name == GUEST_AGENT_SOCKET else connect(self, name)

    monkeypatch.setattr(RunDir, "connect", connected)
    yield made
    await made.end()


@pytest.fixture
async def subject(guest: Guest) -> AsyncIterator[Quiet]:
    async with rom_machine.hosts() as hosts:
        made = Quiet(hosts.new())
        await made.start()
        yield made
        await made.driver.close()
        assert guest.frozen == 0


def is_frozen(subject: Subject) -> bool:
    noted = record.load(RunDir(subject.host.root / subject.vm_id))
    assert noted is not None
    return noted.frozen


async def test_the_disks_are_taken_between_freeze_and_thaw(subject: Quiet, guest: Guest) -> None:
    seen: list[tuple[int, bool]] = []

    async def beside() -> None:
        seen.append((guest.frozen, is_frozen(subject)))

    taken = await subject.driver.take_snapshot(subject.vm_id, name := an_id(), quiesce=True, beside=beside)
    assert taken.consistency is Consistency.QUIESCED
    assert seen == [(2, True)]
    assert guest.told == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
    assert name in points(subject.paths[0])
    assert not is_frozen(subject)


async def test_what_fails_while_they_stand_still_thaws_them(subject: Quiet, guest: Guest) -> None:
    async def broken() -> None:
        raise DriverError("the pool is gone")

    with pytest.raises(DriverError, match="the pool is gone"):
        await subject.driver.take_snapshot(subject.vm_id, name := an_id(), quiesce=True, beside=broken)
    assert guest.told[-1] == "guest-fsfreeze-thaw"
    assert name not in points(subject.paths[0])


async def test_a_caller_that_leaves_does_not_leave_them_frozen(subject: Quiet, guest: Guest) -> None:
    stands = asyncio.Event()

    async def for_ever() -> None:
        stands.set()
        await asyncio.Event().wait()

    work = asyncio.create_task(subject.driver.take_snapshot(subject.vm_id, an_id(), quiesce=True, beside=for_ever))
    await stands.wait()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert guest.frozen == 0
    await subject.host.ticking(subject.vm_id)


async def test_a_guest_that_refuses_or_is_silent_is_no_reason_to_take_it_anyway(
    subject: Quiet, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "FREEZE_DEADLINE_S", 0.2)
    guest.refuses = {"guest-fsfreeze-freeze"}
    with pytest.raises(Unsupported, match="refused") as refused:
        await subject.driver.take_snapshot(subject.vm_id, name := an_id(), quiesce=True)
    assert "\x1b" not in refused.value.reasons[0].message
    guest.refuses, guest.silent_on = set(), {"guest-fsfreeze-freeze"}
    with pytest.raises(Unsupported, match="did not answer") as refused:
        await subject.driver.take_snapshot(subject.vm_id, name, quiesce=True)
    assert refused.value.reasons[0].code == "guest_agent.failed"
    assert guest.told[-1] == "guest-fsfreeze-thaw"
    assert name not in points(subject.paths[0])


async def test_an_agent_that_dies_in_between_is_followed_by_one_that_thaws(
    subject: Quiet, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "THAW_PAUSE_S", 0.05)
    machine_file = RunDir(subject.host.root / subject.vm_id)
    noted = record.load(machine_file)
    assert noted is not None
    guest.frozen = 2  # as kill -9 between freeze and thaw leaves it
    record.save(machine_file, msgspec.structs.replace(noted, frozen=True))
    guest.refuses = {"guest-fsfreeze-thaw"}
    await subject.new_agent()
    await until(lambda: len(guest.told) >= 2, "it is tried again and again")
    guest.refuses = set()
    await until(lambda: guest.frozen == 0 and not is_frozen(subject), "the new agent to thaw them")


async def test_a_machine_without_an_agent_in_its_guest_is_not_held_up(
    hosts_of_quiet: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU's own socket, and nobody behind it."""
    monkeypatch.setattr(snapshot, "FREEZE_DEADLINE_S", 0.2)
    monkeypatch.setattr(snapshot, "THAW_DEADLINE_S", 0.2)
    subject = Quiet(hosts_of_quiet.new())
    await subject.start()
    with pytest.raises((Unsupported, MonitorFailed)):
        await subject.driver.take_snapshot(subject.vm_id, an_id(), quiesce=True)
    await subject.host.ticking(subject.vm_id)


@pytest.fixture
async def hosts_of_quiet() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made
