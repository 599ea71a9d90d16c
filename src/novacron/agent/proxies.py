"""The stream proxies of this node: one for each migration whose stream comes or goes through one.

They live in this process. When it dies their streams end: both QEMUs see their sockets close, the migration fails and
the guest runs on at its source. No post-copy goes through them: what is under way would be lost with the process.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from novacron.agent.drivers.base import Driver, Launch
from novacron.agent.drivers.handoff import Awaited, Departure, Reception
from novacron.agent.stream.cache import PageCache
from novacron.agent.stream.channel import SECRET_BYTES
from novacron.agent.stream.figures import Settings
from novacron.agent.stream.receiver import Receiver
from novacron.agent.stream.sender import Sender
from novacron.errors import InvalidInput, MigrationFailed, NovaCronError
from novacron.model.identity import is_id
from novacron.model.machine import MachineSpec
from novacron.model.migration import Figures
from novacron.wire import moving

FOLDER = "streams"
SAYS_WITHIN_S = 1.0
SLACK_S = 5.0
"""A proxy that gives its link up says so before QEMU is taken for stalled."""


Act = Callable[[Reception], Awaitable[Departure]]


class _Taken(msgspec.Struct):
    """A stream that comes in. at: where its source was told to come."""

    receiver: Receiver
    at: moving.ReceptionAt


class _Given(msgspec.Struct):
    """A stream that goes out."""

    sender: Sender
    to: moving.ReceptionAt
    socket: Path


class Proxies:
    """host: this node's migration address. run_dir: of the agent. uid_of: as whom a machine runs; None: as the agent.
    pages: what is held here; None: nothing is.
    """

    def __init__(
        self,
        host: str,
        run_dir: Path,
        uid_of: Callable[[MachineSpec], int | None],
        pages: PageCache | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.host = host
        self._uid_of = uid_of
        self._folder = run_dir / FOLDER
        self._pages = pages
        self._settings = settings or Settings()
        self._taken: dict[str, _Taken] = {}
        self._given: dict[str, _Given] = {}
        self._begun: set[str] = set()  # migrations that this process was told to send
        self._links: dict[str, float] = {}  # by target: what the last stream there measured
        self._making = asyncio.Lock()

    def sweep(self) -> None:
        """Once, at the agent's start: no stream has outlived the agent before, but its socket may have."""
        if self._folder.is_dir():
            for left in self._folder.iterdir():
                left.unlink()

    async def close(self) -> None:
        """End all streams."""
        for migration_id in (*self._taken, *self._given):
            await self.end(migration_id)
        if self._pages is not None:
            self._pages.close()

    async def end(self, migration_id: str) -> None:
        """Nothing of that migration's streams is left here. None there: fine."""
        self._begun.discard(migration_id)
        taken, given = self._taken.pop(migration_id, None), self._given.pop(migration_id, None)
        if taken is not None:
            await taken.receiver.close()
        if given is not None:
            await given.sender.close()

    # -- target --------------------------------------------------------------------------------------------

    async def accept(self, driver: Driver, launch: Launch, args: moving.Accept) -> moving.ReceptionAt:
        """Have the driver wait for a stream, behind a proxy where one is asked for. Asked again: the same answer.

        Disks come by themselves, past any proxy.
        """
        migration_id, proxy = args.migration_id, args.proxy
        awaited = Awaited(
            migration_id=migration_id,
            host=self.host,
            receives=args.receives,
            proxied=proxy is not None,
            channels=args.channels,
            paused=args.paused,
        )
        reception = await driver.accept(launch, awaited)
        known = self._taken.get(migration_id)
        if known is not None and proxy is not None and not known.receiver.ended:
            return known.at
        await self.end(migration_id)
        return await self._told(reception, migration_id, proxy, launch.uid)

    async def _told(
        self, reception: Reception, migration_id: str, proxy: moving.Proxy | None, uid: int | None
    ) -> moving.ReceptionAt:
        disks = _disks(reception)
        if reception.socket is None or proxy is None:
            return moving.ReceptionAt(
                host=reception.host,
                port=reception.port,
                key_hex=reception.key_hex,
                channels=reception.channels,
                disks=disks,
            )
        secret = secrets.token_bytes(SECRET_BYTES)
        receiver = Receiver(
            secret=secret,
            host=self.host,
            qemu_path=reception.socket,
            qemu_uid=uid,
            scope=self._pages.scope(proxy.scope) if self._pages else None,
            peer=_address(proxy.peer),
            settings=self._settings,
        )
        try:
            host, port = await receiver.start()
        except BaseException:
            await receiver.close()
            raise
        at = moving.ReceptionAt(host=host, port=port, key_hex=secret.hex(), proxied=True, disks=disks)
        self._taken[migration_id] = _Taken(receiver, at)
        return at

    # -- source --------------------------------------------------------------------------------------------

    async def send(self, args: moving.Send, spec: MachineSpec, act: Act, *, again: bool, left: bool) -> Departure:
        """Have the driver `act` with where its stream goes. again: this migration was begun here before; left: the
        machine's state has gone already, as far as it was to go.

        :raise MigrationFailed: it runs as before. Says what the proxy knows of it, which is more than QEMU does.
        """
        if not args.to.proxied:
            return await act(_direct(args.to))
        if again and args.migration_id not in self._begun:
            if left:
                return await act(Reception())
            raise MigrationFailed("its stream has ended: the agent of the source was restarted")
        self._begun.add(args.migration_id)
        given = await self._make(args.migration_id, args.to, spec, args.goals.bandwidth_bytes_per_s or None)
        try:
            return await act(self._through(given))
        except MigrationFailed as wrong:
            why = await self._why(given)
            await self.end(args.migration_id)
            raise MigrationFailed(f"{wrong.message}{why}", wrong.reasons) from wrong

    def set_cap(self, migration_id: str, bytes_per_s: int | None) -> None:
        """How fast its stream goes from now on; None: as it goes. No stream of that migration: fine."""
        given = self._given.get(migration_id)
        if given is not None:
            given.sender.set_cap(bytes_per_s)

    def figured(self, migration_id: str, measured: Figures) -> Figures:
        """The driver's figures of a migration, with what its streams came to; as they are where there were none."""
        given = self._given.get(migration_id)
        if given is None or measured.stream_bytes is None:
            return measured
        streamed = given.sender.figures()
        rate = measured.rate_bytes_per_s
        if streamed.link_bytes_per_s is not None:
            self._links[given.to.host] = streamed.link_bytes_per_s
        return msgspec.structs.replace(
            measured,
            bytes_transferred=streamed.wire_bytes,
            pages_held=streamed.held_pages,
            link_bytes_per_s=streamed.link_bytes_per_s,
            rate_bytes_per_s=rate / streamed.ratio if rate else rate,
        )

    def _through(self, given: _Given) -> Reception:
        return Reception(socket=given.socket, patience_s=self._settings.deadline_s + SLACK_S)

    async def _make(self, migration_id: str, to: moving.ReceptionAt, spec: MachineSpec, cap: int | None) -> _Given:
        """The sender of this migration, listening for QEMU."""
        async with self._making:
            known = self._given.get(migration_id)
            if known is not None:
                return known
            if not is_id(migration_id):  # it becomes the name of a file
                raise InvalidInput.field("migration_id", "is not an id", "give the migration's UUID")
            self._folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            path, uid = self._folder / migration_id, self._uid_of(spec)
            sender = Sender(
                secret=bytes.fromhex(to.key_hex),
                target=(to.host, to.port),
                socket_path=path,
                owner=None if uid is None else (uid, uid),
                settings=self._settings,
                link_bytes_per_s=self._links.get(to.host),
                cap_bytes_per_s=cap,
                local_host=self.host,
            )
            try:
                await sender.start()
            except BaseException:
                await sender.close()
                raise
            made = self._given[migration_id] = _Given(sender, to, path)
            return made

    async def _why(self, given: _Given) -> str:
        """What the proxy says of a stream that failed, if it has ended by itself, or is about to."""
        try:
            async with asyncio.timeout(SAYS_WITHIN_S):
                await given.sender.wait()
        except TimeoutError:
            return ""
        except NovaCronError as wrong:
            return f" ({wrong.message})"
        return ""


def _disks(reception: Reception) -> moving.DisksAt | None:
    at = reception.disks
    if at is None:
        return None
    return moving.DisksAt(host=at.host, port=at.port, key_hex=at.key_hex, layered=at.layered, resumable=at.resumable)


def _direct(to: moving.ReceptionAt) -> Reception:
    return Reception(host=to.host, port=to.port, key_hex=to.key_hex, channels=to.channels)


def _address(peer: str) -> str:
    """As a socket spells it. :raise InvalidInput: it is none."""
    try:
        return str(ipaddress.ip_address(peer))
    except ValueError as wrong:
        raise InvalidInput.field("peer", "is not an IP address", "set the source's migration_host") from wrong
