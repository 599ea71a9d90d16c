"""Start a QEMU: prepare its directory, spawn it, open its monitors; leave nothing behind when that fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from novacron.agent import keeper
from novacron.agent.drivers.base import Launch
from novacron.agent.drivers.qemu import guarded, guarding, tls, tpm
from novacron.agent.drivers.qemu import machine as machines
from novacron.agent.drivers.qemu.command import VARS_FILE, Host, Sockets, command, variables, wants_uefi
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.process import Process, spawn
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.errors import DriverError, MachineDied, MonitorFailed, Unsupported

GREETING_DEADLINE_S = 30.0
DEATH_DEADLINE_S = 5.0


async def launch(machine: Machine, what: Launch, host: Host, *, incoming: bool) -> None:
    """Bring up the machine's process, paused, both monitors open and its record noted.

    :raise MachineDied: QEMU ended at once; carries its last words.
    :raise Unsupported: it cannot be built here. After any failure nothing of it runs and its files are gone.
    """
    listening: list[socket.socket] = []
    try:
        _prepare(machine.run_dir, what, host)
        machine.save()
        await _spawn(machine, what, host, listening, incoming=incoming)
        machine.save()
        for ours in listening:
            ours.close()  # QEMU's copies alone are left: when it dies, the connections waiting there end too
        await _attach(machine)
    except BaseException as wrong:
        for ours in listening:
            ours.close()
        await abandon(machine)
        if isinstance(wrong, OSError):
            raise DriverError(f"machine {machine.vm_id} cannot be started: {wrong}") from wrong
        raise


async def abandon(machine: Machine) -> None:
    """Kill what there is of it and remove its files; the listener is told nothing."""
    for process in (machine.process, machine.tpm):
        if process is not None:
            process.kill()
            await process.wait(machines.KILL_DEADLINE_S)
    await machine.let_go()
    tpm.leave(machine.record.keep, machine.record.tpm)
    clear(machine.run_dir)


def clear(run_dir: RunDir) -> None:
    """Remove what the driver keeps there. The console's log and the UEFI variables stay."""
    run_dir.remove(*machines.OURS)
    tls.erase(run_dir)


def _prepare(run_dir: RunDir, what: Launch, host: Host) -> None:
    run_dir.remove(*machines.OURS)
    if wants_uefi(what) and host.uefi is not None and not variables(what).exists():
        kept = RunDir(variables(what).parent)
        fresh = f".{VARS_FILE}.new"
        with os.fdopen(kept.create(fresh, os.O_WRONLY, what.uid, what.gid), "wb") as target:
            target.write(host.uefi.variables.read_bytes())
        (kept.path / fresh).rename(variables(what))


async def _spawn(machine: Machine, what: Launch, host: Host, listening: list[socket.socket], *, incoming: bool) -> None:
    run_dir = machine.run_dir
    names = [machines.AGENT_SOCKET, machines.RESCUE_SOCKET]
    names += [machines.GUEST_AGENT_SOCKET] if what.spec.guest_agent else []
    listening.extend(run_dir.listen(name) for name in names)
    numbers = [made.fileno() for made in listening]
    guest_agent = numbers[2] if len(numbers) > 2 else None
    with contextlib.ExitStack() as opened:
        memory = _opened(opened, what.memory) if what.memory else None
        numbers += [] if memory is None else [memory]
        stderr = run_dir.create(machines.STDERR_FILE, os.O_WRONLY | os.O_APPEND, what.uid, what.gid)
        opened.callback(os.close, stderr)
        chip = _begin_tpm(machine, what, opened, stderr, incoming=incoming) if what.spec.tpm else None
        numbers += [] if chip is None else [chip]
        sockets = Sockets(agent=numbers[0], rescue=numbers[1], guest_agent=guest_agent, memory=memory, tpm=chip)
        argv = command(what, host, sockets, incoming=incoming)
        try:
            if what.deadline_s is None:
                process = spawn(
                    argv, directory=run_dir.path, stderr=stderr, uid=what.uid, gid=what.gid, pass_fds=numbers
                )
            else:
                process = await _guarded(machine, what, argv, listening, stderr=stderr, pass_fds=numbers)
        except FileNotFoundError as wrong:
            raise Unsupported(f"{host.binary} is not installed on this node") from wrong
    machine.record.identity = process.identity
    machine.hold(process)


async def _guarded(
    machine: Machine,
    what: Launch,
    argv: Sequence[str],
    listening: list[socket.socket],
    *,
    stderr: int,
    pass_fds: Sequence[int],
) -> Process:
    """Under a guardian, noted first, so that an agent after this one looks for it."""
    listening.append(machine.run_dir.listen(guarding.SOCKET))
    machine.record.guarded = machine.record.watched = True
    machine.save()
    lock = keeper.hold(machine.run_dir.path.parent / keeper.LOCK)  # both inherit it, and hold it until they have ended
    try:
        process = await guarding.spawn_guarded(
            argv,
            deadline_s=what.deadline_s or 0.0,
            listening=listening[-1],
            directory=machine.run_dir.path,
            stderr=stderr,
            uid=what.uid,
            gid=what.gid,
            pass_fds=[*pass_fds, lock],
        )
    finally:
        os.close(lock)
    guarded.meet(machine)
    return process


def _begin_tpm(machine: Machine, what: Launch, opened: contextlib.ExitStack, stderr: int, *, incoming: bool) -> int:
    keep, record = what.keep or what.run_dir, machine.record
    record.keep, record.tpm = str(keep), tpm.folder(keep, what.spec.generation, incoming=incoming)
    machine.tpm, end = tpm.begin(machine.run_dir, keep / record.tpm, stderr, what.uid, what.gid)
    opened.callback(end.close)
    return end.fileno()


def _opened(stack: contextlib.ExitStack, path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


async def _attach(machine: Machine) -> None:
    try:
        await machine.attach(GREETING_DEADLINE_S, starting=True)
    except MonitorFailed as wrong:
        # It hung up. QEMU says why on stderr and then ends; the end is a moment behind.
        if machine.process is not None and await machine.process.wait(DEATH_DEADLINE_S):
            await asyncio.sleep(0)  # its end is reported in this turn of the loop
            raise _died_at_start(machine) from wrong
        raise


def _died_at_start(machine: Machine) -> MachineDied:
    gone = machine.died()
    return MachineDied(f"machine {machine.vm_id} did not start: {machine.report().reason}", gone.reasons)
