"""Owns a lab that stays: `python -m novacron.lab.supervisor --dir DIR --plan JSON`. Ends it when told, or by SIGTERM.

It says on standard output what it does, a line of JSON each, until the lab is ready; then it goes on in
`supervisor.log` in the lab's directory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from novacron.errors import NovaCronError
from novacron.lab import orders
from novacron.lab.lab import Lab, open_lab
from novacron.lab.links import LinkState
from novacron.lab.orders import SERVER, Followed, NodeStatus, Refused, Status
from novacron.lab.processes import until_ready

LOG = "supervisor.log"


class Said(msgspec.Struct, frozen=True, tag="said"):
    """A line of progress."""

    text: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The lab runs."""


class Desk:
    """Takes orders for one lab, one at a time."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._turn = asyncio.Lock()
        self.left = asyncio.Event()
        self._open: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection. That of whoever has the lab put away stays open until the process ends."""
        with contextlib.suppress(OSError, ValueError):
            line = await reader.readline()
            if line:
                writer.write(msgspec.json.encode(await self._answer(line)) + b"\n")
                await writer.drain()
        if self.left.is_set():
            self._open.append(writer)
        else:
            writer.close()

    async def _answer(self, line: bytes) -> Followed | Refused:
        try:
            order = msgspec.json.decode(line, type=orders.Order)
            async with self._turn:
                await self._follow(order)
                return Followed(status=self._status())
        except msgspec.MsgspecError as wrong:
            return Refused(message=f"that is no order: {wrong}")
        except NovaCronError as failure:
            return _refused(failure)

    async def _follow(self, order: orders.Order) -> None:
        match order:
            case orders.Look():
                pass
            case orders.Bend():
                link = self._lab.link(order.node)
                await asyncio.to_thread(link.become, order.applied(link.state))
            case orders.Part():
                pair = self._lab.between(order.one, order.other)
                await asyncio.to_thread(pair.cut if order.cut else pair.mend)
            case orders.Strike():
                await asyncio.to_thread(self._strike, order.name, agent_only=order.agent_only)
            case orders.Restart():
                await self._restart(order)
            case orders.Leave():
                self.left.set()

    def _strike(self, name: str, *, agent_only: bool) -> None:
        if name == SERVER:
            self._lab.children[SERVER].kill()
        elif agent_only:
            self._lab.node(name).agent.kill()
        else:
            self._lab.node(name).power_off()

    async def _restart(self, order: orders.Restart) -> None:
        await asyncio.to_thread(self._strike, order.name, agent_only=order.agent_only)
        if order.name == SERVER:
            server = self._lab.children[SERVER]
            server.start_again()
            await until_ready(server)
        elif order.agent_only:
            await asyncio.to_thread(self._lab.node(order.name).agent.start_again)
        else:
            await asyncio.to_thread(self._lab.node(order.name).power_on)

    def _status(self) -> Status:
        lab = self._lab
        names = {host.number: host.name for host in lab.hosts}
        parted = lab.links.parted() if lab.links else []
        return Status(
            path=str(lab.path),
            server=lab.server,
            token_file=str(lab.token_file),
            privileged=lab.links is not None,
            serving=lab.children[SERVER].lives,
            fabric=f"/proc/{os.getpid()}/fd/{lab.fabric.fabric.fd}" if lab.fabric else "",
            nodes=tuple(self._node(name) for name in lab.nodes),
            parted=tuple((names[one], names[other]) for one, other in parted),
        )

    def _node(self, name: str) -> NodeStatus:
        agent = self._lab.children[name].lives
        if self._lab.links is None:
            return NodeStatus(name=name, address="127.0.0.1", power=True, agent=agent, link=LinkState())
        host = self._lab.node(name)
        link = self._lab.link(name).state
        return NodeStatus(
            name=name, address=host.address, power=host.is_on, agent=agent and host.is_on, link=link, pid=host.pid
        )


def _refused(failure: NovaCronError) -> Refused:
    more = [reason.message for reason in failure.reasons if reason.message not in failure.message]
    remedy = next((reason.remedy for reason in failure.reasons if reason.remedy), "")
    return Refused(message="; ".join([failure.message, *more]), remedy=remedy)


@contextlib.asynccontextmanager
async def _open(path: Path, plan: orders.Plan) -> AsyncIterator[Desk]:
    """The lab with its links as planned, and a desk that takes orders."""
    making = open_lab(
        path,
        nodes=plan.nodes,
        bridged=plan.privileged,
        over_fabric=True,
        say=lambda text: _say(Said(text)),
    )
    async with making as lab:
        if plan.link != LinkState():
            for name in lab.nodes:
                await asyncio.to_thread(lab.link(name).become, plan.link)
        desk = Desk(lab)
        file = orders.control_socket(path)
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(desk.serve, str(file), limit=orders.MAX_BYTES)
        finally:
            os.umask(before)
        try:
            yield desk
        finally:
            server.close()
            file.unlink(missing_ok=True)


async def supervise(path: Path, plan: orders.Plan) -> None:
    """Until it is told to end. :raise NovaCronError: the lab could not be built."""
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel if task else loop.stop)
    with contextlib.suppress(asyncio.CancelledError):
        async with _open(path, plan) as desk:
            _say(Ready())
            _write_on_in(path / LOG)
            await desk.left.wait()


def _say(word: Said | Ready | Refused) -> None:
    with contextlib.suppress(OSError):  # whoever started us does not listen any more: we go on
        os.write(1, msgspec.json.encode(word) + b"\n")


def _write_on_in(log: Path) -> None:
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    for descriptor in (1, 2):
        os.dup2(opened, descriptor)
    os.close(opened)


def command(path: Path, plan: orders.Plan) -> list[str]:
    """How the process is started."""
    return [sys.executable, *known_by(path), "--plan", msgspec.json.encode(plan).decode()]


def known_by(path: Path) -> list[str]:
    """What the supervisor of the lab in `path` is told first, whatever Python runs it; no other process is."""
    return ["-P", "-m", "novacron.lab.supervisor", "--dir", str(path)]


def main() -> None:
    """0: the lab is put away again. 1: it could not be built."""
    parser = argparse.ArgumentParser(prog="python -m novacron.lab.supervisor", description="Own a lab that stays.")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--plan", default="{}")
    given = parser.parse_args()
    try:
        asyncio.run(supervise(given.dir, msgspec.json.decode(given.plan, type=orders.Plan)))
    except NovaCronError as failure:
        _say(_refused(failure))
        sys.exit(1)


if __name__ == "__main__":
    main()
