"""Signs of life of real machines: an agent's answers (played over QEMU's socket), else what the vCPUs' threads do."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from novacron.agent.drivers.qemu import QemuDriver, vitals
from novacron.agent.drivers.qemu.machine import GUEST_AGENT_SOCKET
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.errors import NotFound
from novacron.model.machine import MachineStatus
from novacron.model.verdict import CLOCK, HEARTBEAT, Check, Outcome, Signs
from tests.system import rom_machine
from tests.system.rom_machine import Host, an_id, needs_qemu, with_spec

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]
HOUR_MS = 3_600_000.0


class Guest:
    """The agent in a guest whose clock may be off. ignores: commands it is silent on; stuck: its clock stays so."""

    def __init__(self) -> None:
        self.off_ms = 0.0
        self.ignores: set[str] = set()
        self.stuck = False
        self.told: list[str] = []
        self._serving: set[asyncio.Task[None]] = set()

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._serving.add(asyncio.get_running_loop().create_task(self._serve(theirs)))
        return ours

    async def _serve(self, side: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=side)
        while line := await reader.readline():
            asked = json.loads(line.lstrip(b"\xff"))
            command, arguments = asked["execute"], asked["arguments"]
            if command == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n")
                continue
            self.told.append(command)
            if command not in self.ignores:
                writer.write(json.dumps({"return": self._answer(command, arguments)}).encode() + b"\n")
        writer.close()

    def _answer(self, command: str, arguments: dict[str, int]) -> object:
        if command == "guest-get-time":
            return time.time_ns() + int(self.off_ms * 1e6)
        if command == "guest-set-time" and not self.stuck:
            self.off_ms = (arguments["time"] - time.time_ns()) / 1e6
        return {}

    async def end(self) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


@pytest.fixture
async def guest(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Guest]:
    made, connect = Guest(), RunDir.connect

    def connected(self: RunDir, name: str) -> socket.socket:
        return made.connect() if name == GUEST_AGENT_SOCKET else connect(self, name)

    monkeypatch.setattr(RunDir, "connect", connected)
    yield made
    await made.end()


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with rom_machine.hosts() as hosts:
        yield hosts.new()


async def started(host: Host, *, agent: bool = False) -> tuple[QemuDriver, str]:
    driver, vm_id = host.driver(), an_id()
    await driver.start(with_spec(host.launch(vm_id), guest_agent=agent))
    await host.ticking(vm_id)
    return driver, vm_id


def check(signs: Signs, name: str) -> Check:
    return next(one for one in signs.checks if one.name == name)


async def test_an_agent_that_answers_is_a_heartbeat_and_its_clock_is_left_alone(host: Host, guest: Guest) -> None:
    driver, vm_id = await started(host, agent=True)
    guest.off_ms = 400.0
    signs = await driver.examine(vm_id)
    assert (check(signs, HEARTBEAT).outcome, check(signs, CLOCK).outcome) == (Outcome.PASSED, Outcome.PASSED)
    assert "guest agent answered" in check(signs, HEARTBEAT).evidence
    assert signs.clock_off_ms == pytest.approx(400, abs=200)
    assert signs.clock_off_after_ms is None
    assert guest.told == ["guest-ping", "guest-get-time"]


@pytest.mark.parametrize("off_ms", [-HOUR_MS, HOUR_MS])
async def test_a_clock_that_is_off_is_put_right(host: Host, guest: Guest, off_ms: float) -> None:
    driver, vm_id = await started(host, agent=True)
    guest.off_ms = off_ms
    signs = await driver.examine(vm_id)
    assert check(signs, CLOCK).outcome is Outcome.PASSED
    assert signs.clock_off_ms == pytest.approx(off_ms, abs=500)
    assert signs.clock_off_after_ms == pytest.approx(0, abs=500)
    assert ("ahead of" if off_ms > 0 else "behind") in check(signs, CLOCK).evidence


async def test_a_clock_that_stays_off_fails(host: Host, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "SET_S", 0.2)
    driver, vm_id = await started(host, agent=True)
    guest.off_ms, guest.stuck = HOUR_MS, True
    assert check(await driver.examine(vm_id), CLOCK).outcome is Outcome.FAILED
    guest.ignores = {"guest-set-time"}
    signs = await driver.examine(vm_id)
    assert check(signs, CLOCK).outcome is Outcome.FAILED
    assert "was not put right" in check(signs, CLOCK).evidence
    assert signs.clock_off_ms == pytest.approx(HOUR_MS, abs=500)


async def test_without_an_agent_its_vcpus_tell(host: Host, guest: Guest) -> None:
    guest.ignores = {"guest-ping"}
    for agent in (False, True):
        driver, vm_id = await started(host, agent=agent)
        signs = await driver.examine(vm_id)
        assert check(signs, HEARTBEAT).outcome is Outcome.PASSED
        assert "its vCPUs ran" in check(signs, HEARTBEAT).evidence
        assert check(signs, CLOCK).outcome is Outcome.NOT_CHECKED
        assert signs.clock_off_ms is None


async def test_a_guest_that_is_halted_for_good_is_not_taken_for_alive(host: Host) -> None:
    driver, vm_id = host.driver(), an_id()
    launch = host.launch(vm_id)
    halts = launch.run_dir / "halts.rom"
    halts.write_bytes(b"\xf4" * 65536)  # hlt, with interrupts off as they are after a reset
    report = await driver.start(msgspec.structs.replace(launch, firmware=halts))
    assert report.status is MachineStatus.RUNNING
    beat = check(await driver.examine(vm_id), HEARTBEAT)
    assert (beat.outcome, "rested" in beat.evidence) == (Outcome.NOT_CHECKED, True)


async def test_what_stands_still_shows_no_signs(host: Host) -> None:
    driver, vm_id = await started(host)
    await driver.pause(vm_id)
    signs = await driver.examine(vm_id)
    assert {one.outcome for one in signs.checks} == {Outcome.NOT_CHECKED}
    assert "paused" in check(signs, HEARTBEAT).evidence
    with pytest.raises(NotFound):
        await driver.examine(an_id())
