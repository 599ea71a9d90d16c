"""A new identity inside the guest of a copy, given through its guest agent before it has a network card.

Randomness, clock, machine id, host name, and host keys of its SSH server. Randomness comes first, for others are made
of it: a kernel goes on with the numbers of its parent for up to a minute, and two copies would make the same keys. One
that watches the VM generation id (another than the parent's) has new ones already; Debian's cloud kernel does not, and
is told to. What a guest does not have (an SSH server, `hostname`) is passed over; what it refuses to have changed is an
error, and the copy does not begin.
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
KEEP_NAME = "/etc/cloud/cloud.cfg.d/95_copy.cfg"
"""Else cloud-init gives a copy its parent's name at the next boot: it reads the same user-data."""
_KINDS = ("rsa", "dsa", "ecdsa", "ed25519")
HOST_KEYS = tuple(f"/etc/ssh/ssh_host_{kind}_key{end}" for kind in _KINDS for end in ("", ".pub"))
QUICK_KINDS = ("ed25519", "ecdsa")
SSH_SERVERS = ("ssh.service", "sshd.service")
REST_OF_KEYS = f"ssh-keygen -A && systemctl try-reload-or-restart {' '.join(SSH_SERVERS)}"
"""The others take seconds (RSA); its server runs on without them meanwhile, and nothing of the parent's is left."""
_RESEED = "0x5207"  # RNDRESEEDCRNG: what was written to /dev/urandom counts from now on
_MISSING = ("no such file", "failed to execute child process")


class Put(msgspec.Struct, frozen=True):
    """Write a file of the guest. needed: also where there is no such directory; that is an error."""

    path: str
    content: bytes
    needed: bool = True


class Run(msgspec.Struct, frozen=True):
    """Run a program of the guest, if it has it. awaited: until it ends."""

    path: str
    arguments: Sequence[str]
    awaited: bool = True


class OneOf(msgspec.Struct, frozen=True):
    """Run them in turn until one succeeds. A guest in which none does is an error; `what` says what is missing."""

    runs: Sequence[Run]
    what: str


class SetClock(msgspec.Struct, frozen=True):
    """To the host's."""


Step = Put | Run | OneOf | SetClock
RESEED = OneOf(
    (
        Run("/usr/bin/perl", ("-e", f"open(R, '>', '/dev/urandom') && ioctl(R, {_RESEED}, 0) or exit 1")),
        Run("/usr/bin/python3", ("-c", f"import fcntl; fcntl.ioctl(open('/dev/urandom', 'wb'), {_RESEED})")),
        Run("/usr/bin/test", ("-e", "/sys/bus/acpi/drivers/vmgenid")),  # a kernel that sees to it by itself
    ),
    "its kernel watches no VM generation id, and it has neither perl nor python3 to reseed its randomness with",
)


def steps(spec: MachineSpec, entropy: bytes) -> Iterator[Step]:
    """What is done, in order. Pure."""
    yield Put("/dev/urandom", entropy)
    yield RESEED
    yield SetClock()
    yield Put("/etc/machine-id", spec.vm_id.replace("-", "").encode() + b"\n")
    if spec.hostname:
        yield Put("/etc/hostname", spec.hostname.encode() + b"\n")
        yield Run("/bin/hostname", (spec.hostname,))
        yield Run("/bin/sed", ("-i", rf"s/^127\.0\.1\.1\s.*/127.0.1.1 {spec.hostname}/", "/etc/hosts"))
        yield Put(KEEP_NAME, b"preserve_hostname: true\nmanage_etc_hosts: false\n", needed=False)
    yield Run("/bin/rm", ("-f", *HOST_KEYS))
    for kind in QUICK_KINDS:
        yield Run("/usr/bin/ssh-keygen", ("-q", "-N", "", "-t", kind, "-f", f"/etc/ssh/ssh_host_{kind}_key"))
    yield Run("/bin/systemctl", ("try-restart", *SSH_SERVERS))
    yield Run("/bin/sh", ("-c", REST_OF_KEYS), awaited=False)


async def renew(machine: Machine, spec: MachineSpec) -> None:
    """Do them all.

    :raise DriverError: the guest agent does not answer, or refuses what is needed: the copy is still its parent inside.
    """
    for step in steps(spec, secrets.token_bytes(ENTROPY_BYTES)):
        try:
            await _do(machine, step)
        except (MonitorFailed, DeadlineExceeded) as wrong:
            raise DriverError(
                f"machine {machine.vm_id} could not be given an identity of its own: {wrong.message}", wrong.reasons
            ) from wrong


async def _do(machine: Machine, step: Step) -> None:
    match step:
        case SetClock():
            await _ask(machine, "guest-set-time", {"time": int(machine.clock.wall().timestamp() * 1e9)})
        case Put():
            try:
                handle = await _ask(machine, "guest-file-open", {"path": step.path, "mode": "w"})
            except MonitorFailed as refused:
                if step.needed or not _is_missing(refused):
                    raise
                return
            content = base64.b64encode(step.content).decode()
            await _ask(machine, "guest-file-write", {"handle": handle, "buf-b64": content})
            await _ask(machine, "guest-file-close", {"handle": handle})
        case Run():
            await _run(machine, step)
        case OneOf():
            for run in step.runs:
                if await _run(machine, run) == 0:
                    return
            raise MonitorFailed(step.what)


async def _run(machine: Machine, step: Run) -> int | None:
    """How it ended; None: the guest has no such program, or nobody waits for it."""
    try:
        begun = await _ask(machine, "guest-exec", {"path": step.path, "arg": list(step.arguments)})
    except MonitorFailed as refused:
        if not _is_missing(refused):
            raise
        return None
    if not step.awaited:
        return None
    pid = begun.get("pid") if isinstance(begun, dict) else None
    try:
        async with asyncio.timeout(RUN_S):
            while not (seen := await _ask(machine, "guest-exec-status", {"pid": pid})).get("exited"):
                await machine.clock.sleep(POLL_S)
            return int(seen.get("exitcode", -1))  # -1: it was ended by a signal
    except TimeoutError:
        raise DeadlineExceeded(f"{step.path} did not end within {RUN_S:g} s in the guest") from None


def _is_missing(refused: MonitorFailed) -> bool:
    words = " ".join(reason.message for reason in refused.reasons).lower()
    return any(word in words for word in _MISSING)


async def _ask(machine: Machine, command: str, arguments: dict[str, object]) -> Any:
    try:
        connection: socket.socket = machine.run_dir.connect(GUEST_AGENT_SOCKET)
    except OSError as wrong:
        raise MonitorFailed(f"the guest agent of machine {machine.vm_id} cannot be reached: {wrong}") from wrong
    return await guest_agent.ask(connection, secrets.randbits(31), command, arguments, ANSWER_S)
