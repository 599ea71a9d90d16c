"""The agent process: builds the parts, adopts what lives, keeps a line to the server; leaves machines running.

But on SIGPWR, for a host that goes down: then it ends them all and says so, and they are started elsewhere at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import fcntl
import functools
import os
import random
import secrets
import signal
import stat
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from novacron import __version__, config
from novacron.agent.credentials import Badge, Credentials, by_secret
from novacron.agent.dial import dialer
from novacron.agent.drivers.base import Driver
from novacron.agent.drivers.qemu.driver import QemuDriver
from novacron.agent.finder import Finder, looks_of
from novacron.agent.gauge import Gauge
from novacron.agent.guard import Guard
from novacron.agent.heartbeat import Heartbeat
from novacron.agent.host import Host
from novacron.agent.image_door import ImageDoor
from novacron.agent.images import Images
from novacron.agent.ledger import Ledger
from novacron.agent.line import Line
from novacron.agent.lines import Lines
from novacron.agent.link_probe import LinkProber
from novacron.agent.machines import Machines
from novacron.agent.member import Member
from novacron.agent.mover import Mover
from novacron.agent.network import Networks, ability
from novacron.agent.network.dnsmasq import Dnsmasq
from novacron.agent.network.memory import Memory
from novacron.agent.network.overlay import Overlay
from novacron.agent.network.tap import TapNetwork
from novacron.agent.network.travel import Movements
from novacron.agent.network.user import UserNetwork
from novacron.agent.provisioner import Provisioner
from novacron.agent.proxies import Proxies
from novacron.agent.renewer import Renewer
from novacron.agent.servers import FILE as SERVERS_FILE
from novacron.agent.servers import Contact, Servers
from novacron.agent.snapshots import Snapshots
from novacron.agent.sources import Server
from novacron.agent.storage.depot import Depot
from novacron.agent.storage.directory import DirectoryPool
from novacron.agent.storage.kinds import maker
from novacron.agent.storage.tool import Tools
from novacron.agent.stream.cache import PageCache
from novacron.agent.verbs import Verbs, link_table, member_table, network_table, table
from novacron.agent.volumes import Volumes
from novacron.agent.watchdog import Watchdog
from novacron.agent.works import Works
from novacron.clock import Clock, SystemClock
from novacron.config import AgentConfig
from novacron.durable import write_durably
from novacron.errors import Conflict, InvalidInput, NovaCronError
from novacron.model.ha import FenceClass
from novacron.model.identity import is_id, new_id
from novacron.model.machine import NetworkKind
from novacron.model.timing import STANDARD
from novacron.wire.agent import PROTOCOL, Hello, MigrationProgress

FINISH_WITHIN_S = 3.0
MAX_SECRET_BYTES = 4096

DRIVERS: dict[str, Callable[[AgentConfig, Clock], Driver]] = {
    "qemu": lambda settings, clock: QemuDriver(
        settings.qemu_binary, settings.state_dir / "cache", clock, settings.accelerator
    ),
}
"""Every driver by name; one runs the machines of a node."""
DRIVER = "qemu"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 after SIGTERM, SIGINT or SIGPWR, 2 when the settings are wrong or the node is in use."""
    try:
        settings = parse(sys.argv[1:] if arguments is None else arguments)
        _log_as(settings.log_format)
        with locked(settings.state_dir):
            asyncio.run(serve(settings))
    except NovaCronError as error:
        remedies = "".join(f"\n  {reason.remedy}" for reason in error.reasons if reason.remedy)
        sys.stderr.write(f"novacron agent: {error.message}{remedies}\n")
        return 2
    return 0


def parse(arguments: Sequence[str]) -> AgentConfig:
    """Settings from `--config FILE` and a flag a field on top. :raise InvalidInput"""
    parser = argparse.ArgumentParser("novacron-agent", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--config", type=Path, help="TOML file with the same names, underscores for dashes")
    for field in dataclasses.fields(AgentConfig):
        parser.add_argument(f"--{field.name.replace('_', '-')}", dest=field.name)
    values = vars(parser.parse_args(arguments))
    file = values.pop("config")
    return config.load(AgentConfig, file, values)


class Agent:
    """The parts of one node's agent, put together; nothing has run yet."""

    def __init__(self, settings: AgentConfig, clock: Clock) -> None:
        self._name = settings.node_name
        self._node_id = own_id(settings.state_dir, clock)
        self.driver = DRIVERS[DRIVER](settings, clock)
        tools = Tools(settings.uid_base or None)  # no machine has slot 0
        own = DirectoryPool(settings.pool_dir, tools=tools)
        depot = Depot(own, maker(tools, own, clock))
        self._host = Host(depot.own, settings.migration_host, tunnel_address=settings.tunnel_address)
        servers = Dnsmasq(settings.run_dir / "networks")
        self.overlay = Overlay(Memory(settings.state_dir / "networks"), servers, settings.tunnel_address, clock)
        self.movements = Movements(self.overlay, clock)
        networks: Networks = {
            NetworkKind.USER: UserNetwork(),
            NetworkKind.BRIDGE: TapNetwork(),
            NetworkKind.OVERLAY: self.overlay,
        }
        provisioner = Provisioner(depot, networks, settings.run_dir, settings.uid_base)
        ledger = Ledger(settings.state_dir / "machines")
        watchdog = Watchdog(settings.watchdog, settings.run_dir) if settings.watchdog else None
        self.guard = guard = Guard(ledger, self.driver, clock, FenceClass.TIMER, watchdog)
        provisioner.deadline_of = guard.deadline_of
        self.member = Member(guard, self._host.boot_id, clock)
        self.machines = Machines(ledger, provisioner, self.driver, clock, self._host.boot_id, self.member.check)
        self.proxies = Proxies(settings.migration_host, settings.run_dir, provisioner.uid_of, _pages(settings))
        mover = Mover(
            ledger,
            provisioner,
            self.driver,
            self.machines,
            proxies=self.proxies,
            announce=self._announce,
            clock=clock,
            travel=self.movements,
        )
        self.snapshots = Snapshots(
            ledger, provisioner, depot, self.driver, self.machines, settings.state_dir / "exports"
        )
        badge = Badge(settings.state_dir)
        shown = credentials_of(settings, badge)
        learned = None if shown.secret else settings.state_dir / SERVERS_FILE
        servers_known = Servers(settings.addresses, learned, clock)
        self.finder = Finder(servers_known, looks_of(settings.sources, badge.fingerprints), clock)
        server = Server(servers_known.addresses, shown, lambda: int(clock.wall().timestamp()))
        self.images = Images(depot, settings.state_dir / "fetching", server)
        self.door = ImageDoor(self.images.file, shown.ticket_key, server.now_s)
        doers = table(self.machines, mover, Gauge(ledger, self.driver), Volumes(depot), self.snapshots, self.images)
        self.links = LinkProber(settings.migration_host)
        verbs = Verbs({**doers, **network_table(self.overlay), **link_table(self.links), **member_table(self.member)})
        self.works = Works(verbs.perform)
        self.lines = Lines(servers_known, lambda address: self._line(address, shown, clock, servers_known), clock)
        rng = random.Random(secrets.randbits(64))  # noqa: S311  (jitter is no secret)
        self.renewer = None if shown.secret else Renewer(servers_known.addresses, badge, self._node_id, clock, rng)

    def open_door(self, settings: AgentConfig) -> contextlib.AbstractAsyncContextManager[None]:
        """Let other nodes fetch image files here, if the settings say so, for as long as the block runs."""
        if settings.image_door_port is None:
            return contextlib.nullcontext()
        return self.door.opened(
            settings.migration_host, settings.image_door_port, settings.state_dir / "image-door.pem"
        )

    def _line(self, address: str, shown: Credentials, clock: Clock, servers: Servers) -> Line:
        heartbeat = Heartbeat(self.machines, self._host, clock, self.overlay.ids)
        rng = random.Random(secrets.randbits(64))  # noqa: S311  (jitter is no secret)
        hello = functools.partial(self._hello, heartbeat)
        dial, contact = dialer(address, shown.secret, shown.tls), Contact(servers, address)
        return Line(dial, self.works, heartbeat, hello, clock, rng, self.member, contact)

    def tasks(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """What runs for as long as the agent does."""
        yield "trim", self.machines.trim_consoles()
        yield "expire", self.machines.remains.expire()
        yield "tend", self.overlay.tend()
        yield "member", self.member.run()
        yield "lines", self.lines.run()
        if self.finder.is_needed:
            yield "find", self.finder.run()
        if self.renewer is not None:
            yield "renew", self.renewer.run()

    def _announce(self, frame: MigrationProgress) -> None:
        self.lines.announce(frame)

    async def leave(self) -> bool:
        """End every machine and tell a server, over the lines there are; whether that was written.

        Nothing may take part in memberships any more (`member.run` has ended).
        """
        self.member.begin_leaving()
        return await self.works.finish(FINISH_WITHIN_S) and await self.member.leave()

    async def _hello(self, heartbeat: Heartbeat) -> Hello:
        facts = msgspec.structs.replace(
            await self._host.facts((await self.driver.probe(),)),
            image_door=self.door.address,
            image_door_fingerprint=self.door.fingerprint,
            watchdog=self.guard.watchdog,
        )
        return Hello(
            protocol=PROTOCOL,
            node_id=self._node_id,
            node_name=self._name,
            facts=facts,
            machines=heartbeat.told(),
            networks=self.overlay.ids(),
            copies=self.machines.remains.all(),
            takes_part=True,
        )


def credentials_of(settings: AgentConfig, badge: Badge) -> Credentials:
    """What the node shows: the certificate it joined with, where all servers can be shown one; else the shared secret.

    :raise InvalidInput: it has neither, or what it has cannot be used.
    """
    if badge.is_there and all(address.startswith("https://") for address in settings.addresses):
        return badge.credentials()
    if settings.sources:
        remedy = "join first: `novacron agent join`; name only https:// addresses beside"
        raise InvalidInput.field("servers", "are looked for only by nodes that know them by the cluster's CA", remedy)
    if settings.secret_file is not None:
        return by_secret(read_secret(settings.secret_file), settings.tls_ca)
    remedy = "join first: `novacron agent join`; or give a copy of the server's agent.secret"
    raise InvalidInput.field("secret_file", "is missing, and the node has not joined a cluster", remedy)


def _pages(settings: AgentConfig) -> PageCache | None:
    """What is kept of incoming streams. It goes with this process: the file has no name."""
    limit_bytes = settings.page_cache_mib << 20
    return PageCache(settings.state_dir, limit_bytes) if limit_bytes else None


async def serve(settings: AgentConfig) -> None:
    """Adopt what lives, then keep the lines open until SIGTERM, SIGINT or SIGPWR."""
    stopping, leaving = asyncio.Event(), asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopping.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGPWR, leaving.set)
    log = structlog.get_logger("agent")
    agent = Agent(settings, SystemClock())
    tasks: list[asyncio.Task[None]] = []
    doors = contextlib.AsyncExitStack()
    try:
        agent.proxies.sweep()
        await agent.snapshots.sweep()
        agent.images.sweep()
        await doors.enter_async_context(agent.open_door(settings))
        for reason in ability.missing():
            log.info("no networks over several nodes here", why=reason.message, remedy=reason.remedy)
        doors.callback(agent.overlay.close)
        await agent.overlay.adopt()
        adopted = await agent.machines.adopt()
        log.info("adopted", machines=len(adopted))
        await agent.guard.ready(STANDARD)
        tasks += [asyncio.create_task(task, name=name) for name, task in agent.tasks()]
        tasks.append(asyncio.create_task(_until(stopping), name="stopping"))
        tasks.append(asyncio.create_task(_until(leaving), name="leaving"))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                await task
        if leaving.is_set():
            await _cancelled([task for task in tasks if task.get_name() == "member"])
            log.warning("leaving", told_that_nothing_runs=await agent.leave())
        else:
            log.info("stopping; machines run on")
    finally:
        await _cancelled(tasks)
        await doors.aclose()
        await agent.works.finish(FINISH_WITHIN_S)
        await agent.guard.close()
        await agent.links.close()
        await agent.proxies.close()
        await agent.movements.close()
        await agent.driver.close()


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    """They have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _until(event: asyncio.Event) -> None:
    await event.wait()


# -- what lies in the state directory ----------------------------------------------------------------------


@contextlib.contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Hold the state directory alone. :raise Conflict: another agent has it."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(state_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            raise Conflict(f"another agent runs on {state_dir}") from held
        yield
    finally:
        os.close(handle)


def own_id(state_dir: Path, clock: Clock) -> str:
    """The node's id, made at its first start and kept for ever. :raise InvalidInput: the file was damaged."""
    file = state_dir / "node.id"
    if not file.exists():
        made = new_id(int(clock.wall().timestamp() * 1000), secrets.randbits(74))
        write_durably(file, f"{made}\n".encode())
    node_id = file.read_text().strip()
    if not is_id(node_id):
        raise InvalidInput.field("state_dir", f"{file} does not hold a node id", "restore it; a new id is a new node")
    return node_id


def read_secret(file: Path) -> str:
    """The secret shared with the server. :raise InvalidInput: it cannot be read, is empty, or open to everybody."""
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o007:
            raise InvalidInput.field("secret_file", f"{file} is open to every user", f"chmod 600 {file}")
        with file.open() as opened:
            secret = opened.read(MAX_SECRET_BYTES).strip()
    except (OSError, UnicodeDecodeError) as wrong:
        raise InvalidInput.field("secret_file", f"cannot read {file}: {wrong}", "copy it from the server") from wrong
    if not secret or not secret.isascii() or not secret.isprintable():
        raise InvalidInput.field("secret_file", f"{file} holds no secret", "copy it from the server")
    return secret


def _log_as(form: str) -> None:
    """Lines for people or JSON for machines, on stderr."""
    shape = structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            shape,
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
