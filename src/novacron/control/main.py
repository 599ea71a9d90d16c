"""The control plane as a process: settings from flags and a file, a house that is opened, served and closed again.

    python -m novacron.control --data-dir DIR --pool-dir DIR [--port N] [--socket PATH] [--config FILE] ...

Every flag is a field of config.ServerConfig. It prints `ready http://host:port` when it serves. SIGTERM and SIGINT
end it within seconds; machines are not touched.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import structlog
import uvloop

from novacron.clock import SystemClock
from novacron.config import ServerConfig, load
from novacron.control import listen, log
from novacron.control.house import House, open_house
from novacron.errors import NovaCronError, StoreUnavailable

GARBAGE_EVERY_S = 600.0
NEVER = 1 << 30  # collections of the middle generation before the old one's turn

_log = structlog.get_logger("server")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to end; the exit code: 0 a clean end, 1 it could not start or go on, 2 wrong flags."""
    flags = vars(_parser().parse_args(arguments))
    file = flags.pop("config")
    try:
        config = load(ServerConfig, Path(file) if file else None, flags)
        log.set_up(config.log_format)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(config))
    except NovaCronError as error:
        remedies = "".join(f"\n  {reason.remedy}" for reason in error.reasons if reason.remedy)
        sys.stderr.write(f"novacron server: {error.message}{remedies}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m novacron.control", description="The NovaCron control plane.")
    parser.add_argument("--config", metavar="FILE", help="settings as TOML; flags count more")
    for field in dataclasses.fields(ServerConfig):
        parser.add_argument(f"--{field.name.replace('_', '-')}", dest=field.name, metavar="VALUE")
    return parser


async def run(config: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT. :raise NovaCronError: it cannot start, or has lost its store."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tls = config.has_tls
    async with contextlib.AsyncExitStack() as stack:
        listening = [(stack.enter_context(contextlib.closing(listen.tcp(config.host, config.port))), tls)]
        if config.socket:
            listening.append((stack.enter_context(_local(Path(config.socket))), False))
        url = listen.address_of(listening[0][0], tls=tls)
        gc.disable()  # a hundred thousand records are no garbage: looking for it meanwhile doubles the time
        house = await stack.enter_async_context(open_house(config, SystemClock(), url))
        await stack.enter_async_context(_seldom_looked_through())
        servers = [
            await stack.enter_async_context(_serving(house, config, bound, tls=with_tls))
            for bound, with_tls in listening
        ]
        if house.first_token is not None:
            _say(f"admin token, shown this once and kept in {house.token_file}: {house.first_token}")
        _say(f"ready {url}")
        await _until_over(stop, house, servers)
        await house.hand_over()
        _log.info("ending; machines run on")


@contextlib.asynccontextmanager
async def _seldom_looked_through() -> AsyncIterator[None]:
    """What lives long is looked through for garbage every GARBAGE_EVERY_S alone: with a thousand nodes that takes 0.1 s
    in which nothing is answered, and it came every few seconds. What was read at the start stays and is not looked at.
    """
    gc.collect()
    gc.enable()
    gc.freeze()
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, NEVER)
    looking = asyncio.create_task(_look_for_garbage(), name="garbage")
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        gc.set_threshold(young, middle, old)


async def _look_for_garbage() -> None:
    while True:
        await asyncio.sleep(GARBAGE_EVERY_S)
        gc.collect()


@contextlib.contextmanager
def _local(path: Path) -> Iterator[socket.socket]:
    """The unix socket; afterwards its file is gone."""
    with contextlib.closing(listen.unix(path)) as bound:
        try:
            yield bound
        finally:
            path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _serving(
    house: House, config: ServerConfig, listening: socket.socket, *, tls: bool
) -> AsyncIterator[asyncio.Task[None]]:
    """The application on one listener; afterwards its connections have ended."""
    context = house.authority.context() if house.authority else None
    server = listen.server_for(house.app, config, tls=tls, context=context)
    running = asyncio.create_task(server.serve(sockets=[listening]), name="serve")
    try:
        up = asyncio.create_task(server.is_up())
        await asyncio.wait({up, running}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        yield running
    finally:
        server.should_exit = True
        await running


async def _until_over(stop: asyncio.Event, house: House, servers: list[asyncio.Task[None]]) -> None:
    """Wait for the signal to end. :raise StoreUnavailable: the record cache has lost the store for good."""
    told = asyncio.create_task(stop.wait())
    lost = asyncio.create_task(house.until_lost())
    try:
        await asyncio.wait({told, lost, *servers}, return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            raise StoreUnavailable("the server cannot go on: it has lost its store; start it again")
    finally:
        told.cancel()
        lost.cancel()
        await asyncio.gather(told, lost, return_exceptions=True)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
