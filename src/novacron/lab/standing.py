"""Labs that stay: started into the background, ended whoever died before, entered by a command."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from novacron.lab import cleanup, lab, orders, supervisor
from novacron.lab.failure import LabFailed
from novacron.lab.namespaces import enter
from novacron.lab.orders import Plan, Refused, Status
from novacron.lab.space import ALL
from novacron.lab.supervisor import Ready, Said

FABRIC = "fabric"
_LAST_WORDS = 20


def up(path: Path, plan: Plan, say: Callable[[str], None]) -> Status:
    """Start a lab that stays after us. Interrupted before it is ready, it is put away again.

    :raise LabFailed: it could not be built, and nothing is left of it.
    """
    process = subprocess.Popen(  # noqa: S603 - a list of our own
        supervisor.command(path, plan),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _until_ready(process, say)
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    finally:
        if process.stdout:
            process.stdout.close()
    return orders.ask(path, orders.Look())


def _until_ready(process: subprocess.Popen[bytes], say: Callable[[str], None]) -> None:
    other: list[str] = []
    for line in process.stdout or ():
        try:
            word = msgspec.json.decode(line, type=Said | Ready | Refused)
        except msgspec.MsgspecError:
            other = [*other, line.decode(errors="replace").rstrip()][-_LAST_WORDS:]
            continue
        if isinstance(word, Ready):
            return
        if isinstance(word, Refused):
            raise LabFailed.because(word.message, word.remedy)
        say(word.text)
    raise LabFailed.because("the lab's supervisor ended: " + "; ".join(other or ["it said nothing"]))


def down(path: Path) -> int:
    """End the lab in `path`, or what is left of it; the number of processes that had to be ended by hand.

    :raise LabFailed: somebody else than a supervisor holds it, or something does not end.
    """
    ended = 0
    try:
        orders.ask(path, orders.Look())
        orders.ask(path, orders.Leave())
    except LabFailed:  # its supervisor hangs, or is dead: by hand
        ended = cleanup.end_holder(path, supervisor.known_by(path))
    return ended + lab.clean(path)


def run_in(path: Path, place: str, command: Sequence[str]) -> int:
    """Run a command in a node, as one of its processes, or in the fabric's network; its exit code as a shell tells it.

    This process enters the place itself, and must not be used for anything else.

    :raise LabFailed: there is no such place, or it has no power.
    """
    if place == FABRIC:
        _enter_fabric(orders.ask(path, orders.Look()))
    else:
        _enter_node(path, place)
    try:
        code = subprocess.call(list(command), cwd="/")  # noqa: S603 - what the user typed, word by word
    except OSError as wrong:
        raise LabFailed.because(f"cannot run {command[0]}: {wrong.strerror}") from wrong
    return code if code >= 0 else 128 - code


def _enter_fabric(status: Status) -> None:
    if not status.fabric:
        raise LabFailed.because("without root the lab has no fabric", "start it as root")
    descriptor = os.open(status.fabric, os.O_RDONLY | os.O_CLOEXEC)
    enter(descriptor)
    os.close(descriptor)


def _enter_node(path: Path, name: str) -> None:
    pid = _pid(path, name)
    descriptor = os.pidfd_open(pid)
    try:
        if _pid(path, name) != pid:  # had it ended before the descriptor was there, another might be meant
            raise LabFailed.because(f"{name} was restarted at this moment", "try again")
        enter(descriptor, ALL)
    finally:
        os.close(descriptor)


def _pid(path: Path, name: str) -> int:
    status = orders.ask(path, orders.Look())
    found = {node.name: node for node in status.nodes}.get(name)
    if found is None:
        raise LabFailed.because(
            f"there is no {name}", f"give {FABRIC} or one of {', '.join(n.name for n in status.nodes)}"
        )
    if found.pid is None:
        remedy = f"novacron lab restart {name}" if status.privileged else "start the lab as root"
        raise LabFailed.because(f"{name} has no power, or no place of its own", remedy)
    return found.pid
