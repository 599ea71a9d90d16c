"""A new identity inside the guest of a copy, given through its guest agent before it has a network card.

Clock, host name, machine id, host keys of its SSH server, and randomness; the kernel's own randomness and its other
readers follow the VM generation id, which is another than the parent's. What a guest does not have (an SSH server,
`hostname`) is passed over; what it refuses to have changed is an error, and the copy does not begin.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from novacron.agent.drivers.qemu import guest_agent
from novacron.agent.drivers.qemu.machine import GUEST_AGENT_SOCKET, Machine
from novacron.errors import DeadlineExceeded, DriverError, MonitorFailed
from novacron.model.machine import MachineSpec

ANSWER_S = 10.0
RUN_S = 60.0
POLL_S = 0.05
ENTROPY_BYTES = 512
HOST_KEYS = tuple(f"/etc/ssh/ssh_host_{kind}_key{end}" for kind in ("rsa", "ecdsa", "ed25519") for end in ("", ".pub"))
_MISSING = ("no such file", "failed to execute child process")


class Put(msgspec.Struct, frozen=True):
    """Write a file of the guest. needed: a guest that does not let us is an error."""

    path: str
    content: bytes
    needed: bool = True


class Run(msgspec.Struct, frozen=True):
    """Run a program of the guest, if it has it."""

    path: str
    arguments: Sequence[str]


class SetClock(msgspec.Struct, frozen=True):
    """To the host's."""


def steps(spec: MachineSpec, entropy: bytes) -> Iterator[Put | Run | SetClock]:
    """What is done, in order. Pure."""
    yield SetClock()
    yield Put("/dev/urandom", entropy, needed=False)
    yield Put("/etc/machine-id", spec.vm_id.replace("-", "").encode() + b"\n")
    if spec.hostname:
        yield Put("/etc/hostname", spec.hostname.encode() + b"\n")
        yield Run("/bin/hostname", (spec.hostname,))
    yield Run("/bin/rm", ("-f", *HOST_KEYS))
    yield Run("/usr/bin/ssh-keygen", ("-A",))
    yield Run("/bin/systemctl", ("try-restart", "ssh.service", "sshd.service"))


async def renew(machine: Machine, spec: MachineSpec) -> None:
    """Do them all.

    :raise DriverError: the guest agent does not answer, or refuses what is needed: the copy is still its parent inside.
    """
    for step in steps(spec, secrets.token_bytes(ENTROPY_BYTES)):
        try:
            await _do(machine, step)
        except (MonitorFailed, DeadlineExceeded) as wrong:
            if isinstance(step, Put) and not step.needed:
                continue
            raise DriverError(
                f"machine {machine.vm_id} could not be given an identity of its own: {wrong.message}", wrong.reasons
            ) from wrong


async def _do(machine: Machine, step: Put | Run | SetClock) -> None:
    match step:
        case SetClock():
            await _ask(machine, "guest-set-time", {"time": int(machine.clock.wall().timestamp() * 1e9)})
        case Put():
            handle = await _ask(machine, "guest-file-open", {"path": step.path, "mode": "w"})
            content = base64.b64encode(step.content).decode()
            await _ask(machine, "guest-file-write", {"handle": handle, "buf-b64": content})
            await _ask(machine, "guest-file-close", {"handle": handle})
        case Run():
            await _run(machine, step)


async def _run(machine: Machine, step: Run) -> None:
    try:
        begun = await _ask(machine, "guest-exec", {"path": step.path, "arg": list(step.arguments)})
    except MonitorFailed as refused:
        words = " ".join(reason.message for reason in refused.reasons).lower()
        if any(word in words for word in _MISSING):
            return
        raise
    pid = begun.get("pid") if isinstance(begun, dict) else None
    try:
        async with asyncio.timeout(RUN_S):
            while not (await _ask(machine, "guest-exec-status", {"pid": pid})).get("exited"):
                await machine.clock.sleep(POLL_S)
    except TimeoutError:
        raise DeadlineExceeded(f"{step.path} did not end within {RUN_S:g} s in the guest") from None


async def _ask(machine: Machine, command: str, arguments: dict[str, object]) -> Any:
    try:
        connection: socket.socket = machine.run_dir.connect(GUEST_AGENT_SOCKET)
    except OSError as wrong:
        raise MonitorFailed(f"the guest agent of machine {machine.vm_id} cannot be reached: {wrong}") from wrong
    return await guest_agent.ask(connection, secrets.randbits(31), command, arguments, ANSWER_S)
