"""A copy's new identity: what is done in which order, which guests are refused. The agent inside is played here."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from novacron.agent.drivers.qemu import identity
from novacron.agent.drivers.qemu.identity import Put, Run, SetClock
from novacron.agent.drivers.qemu.machine import Machine
from novacron.clock import SystemClock
from novacron.errors import DriverError
from novacron.model.machine import MachineSpec

pytestmark = pytest.mark.anyio

SPEC = MachineSpec(
    vm_id="01a209f6-f78a-765b-aa5c-daf5af279a93", generation=1, vcpus=1, memory_mib=128, hostname="worker-1"
)


class Guest:
    """An agent in a guest that has `files` (None: any) and `programs`, with what they end."""

    def __init__(self, programs: dict[str, int], missing_files: tuple[str, ...] = ()) -> None:
        self.programs = programs
        self.missing_files = missing_files
        self.did: list[str] = []
        self.serving: set[asyncio.Task[None]] = set()
        self.machine = cast("Machine", SimpleNamespace(vm_id=SPEC.vm_id, clock=SystemClock(), run_dir=self))

    def connect(self, _name: str) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.serving.add(asyncio.get_running_loop().create_task(self._serve(theirs)))
        return ours

    async def _serve(self, side: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=side)
        while line := await reader.readline():
            asked = json.loads(line.lstrip(b"\xff"))
            if asked["execute"] == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": asked["arguments"]["id"]}).encode() + b"\n")
            else:
                writer.write(json.dumps(self._answer(asked["execute"], asked["arguments"])).encode() + b"\n")
        writer.close()

    def _answer(self, command: str, given: dict[str, Any]) -> dict[str, Any]:
        if command in ("guest-exec", "guest-file-open"):
            path = given["path"]
            known = path in self.programs if command == "guest-exec" else path not in self.missing_files
            if not known:
                return {"error": {"class": "GenericError", "desc": f"failed to open {path}: No such file or directory"}}
            self.did.append(path)
            return {"return": {"pid": self.programs[path]} if command == "guest-exec" else 7}
        return {"return": {"exited": True, "exitcode": given["pid"]} if command == "guest-exec-status" else {}}


@pytest.fixture
async def guests() -> AsyncIterator[list[Guest]]:
    made: list[Guest] = []
    yield made
    for task in (task for guest in made for task in guest.serving):
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_randomness_is_new_before_keys_are_made_of_it_and_the_old_server_gone_before_it_ends() -> None:
    done = list(identity.steps(SPEC, b"noise"))
    assert done[:3] == [Put("/dev/urandom", b"noise"), identity.RESEED, SetClock()]
    runs = [step for step in done if isinstance(step, Run)]
    removed = next(run for run in runs if run.path == "/bin/rm")
    keys = [run for run in runs if run.path == "/usr/bin/ssh-keygen"]
    restart = next(run for run in runs if run.path == "/bin/systemctl")
    assert runs.index(removed) < runs.index(keys[0]) <= runs.index(keys[-1]) < runs.index(restart)
    assert "/etc/ssh/ssh_host_dsa_key" in removed.arguments
    assert all(run.awaited for run in (removed, *keys, restart))
    assert Put("/etc/machine-id", SPEC.vm_id.replace("-", "").encode() + b"\n") in done


async def test_a_guest_with_next_to_nothing_is_passed(guests: list[Guest]) -> None:
    guests.append(guest := Guest({"/usr/bin/python3": 0}, missing_files=(identity.KEEP_NAME,)))
    await identity.renew(guest.machine, SPEC)
    assert guest.did == ["/dev/urandom", "/usr/bin/python3", "/etc/machine-id", "/etc/hostname"]


@pytest.mark.parametrize("programs", [{}, {"/usr/bin/perl": 1, "/usr/bin/python3": 1, "/usr/bin/test": 1}])
async def test_a_guest_whose_kernel_would_go_on_with_its_parents_randomness_is_refused(
    guests: list[Guest], programs: dict[str, int]
) -> None:
    guests.append(guest := Guest(programs))
    with pytest.raises(DriverError, match="reseed"):
        await identity.renew(guest.machine, SPEC)


async def test_a_kernel_that_watches_the_generation_id_needs_no_program(guests: list[Guest]) -> None:
    guests.append(guest := Guest({"/usr/bin/test": 0}))
    await identity.renew(guest.machine, SPEC)


async def test_a_guest_that_keeps_its_machine_id_is_refused(guests: list[Guest]) -> None:
    guests.append(guest := Guest({"/usr/bin/perl": 0}, missing_files=("/etc/machine-id",)))
    with pytest.raises(DriverError, match="identity of its own"):
        await identity.renew(guest.machine, SPEC)
