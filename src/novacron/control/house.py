"""The control plane assembled: store, records, services, application and workers, opened and closed in order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from fastapi import FastAPI

import novacron
from novacron.clock import Clock
from novacron.config import ServerConfig
from novacron.control import premises
from novacron.control.access.service import TOKEN_FILE, Access
from novacron.control.advertiser import Advertiser
from novacron.control.application import application
from novacron.control.fencing.parts import Fencing
from novacron.control.ha.admission import Admission
from novacron.control.household import Household, household
from novacron.control.images.door import router as image_door
from novacron.control.joining.authority import Authority
from novacron.control.joining.parts import Joining
from novacron.control.leader import Leader
from novacron.control.link import Link
from novacron.control.observe import Figures
from novacron.control.pools.service import ensure_default
from novacron.control.reign import LedLines, reign
from novacron.control.roster import Roster
from novacron.control.staff import guardians, watching, workers
from novacron.control.store.address import Address, SqliteAddress, parse
from novacron.control.store.base import Store
from novacron.control.store.identity import SEEN_FILE, Seen
from novacron.control.store.opening import open_store
from novacron.control.store.records import Records
from novacron.control.supervise import Work, keep_going
from novacron.control.volumes.adopt import adopt_disks
from novacron.errors import InvalidInput
from novacron.model.leadership import ALONE, STANDARD, Candidate, Timing

STORE_FILE = "store.db"
NEVER = 1 << 62

_log = structlog.get_logger("house")


@dataclasses.dataclass(frozen=True, kw_only=True)
class House:
    """What is served. first_token: the admin's, when this is the first start. authority: of a cluster, for its TLS."""

    app: FastAPI
    records: Records
    access: Access
    first_token: str | None
    token_file: Path
    leading: asyncio.Task[None]
    authority: Authority | None = None

    async def hand_over(self) -> None:
        """Lead no more, now or later, so that another server goes on at once. Requests are still answered."""
        await _end(self.leading)

    async def until_lost(self) -> None:
        """Return when the record cache has lost the store."""
        with contextlib.suppress(Exception):
            await self.records.caught_up(NEVER)


@contextlib.asynccontextmanager
async def open_house(config: ServerConfig, clock: Clock, address: str = "") -> AsyncIterator[House]:
    """Everything up and working; closed in reverse afterwards. Agents and machines are not touched by that.

    address: where the API is served, for people.

    :raise NovaCronError: what is on disk cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        secret, pool_id = premises.prepare(config)
        rng = random.SystemRandom()
        timing = ALONE if isinstance(address_of(config), SqliteAddress) else STANDARD
        store, seen = await _open_store(config, clock, rng, stack)
        records = Records(store, clock, rng)
        await records.start()
        stack.push_async_callback(records.stop)
        access = Access(store)
        first_token = await access.start(config.data_dir)
        joining = Joining(config, records, clock, secret)
        await joining.start()
        link = Link(clock, secret, novacron.__version__, joining.doorman)
        figures = Figures(records)
        home = household(config, records, link, clock, pool_id)
        await _furnish(home, timing)
        candidate = _candidate(config, records)
        place = place_of(config, address, joining.authority)
        roster = Roster(store, clock, candidate, address, timing, place)
        stack.push_async_callback(roster.leave)
        watch = watching(home, link, roster)
        fencing = Fencing(config, records, link, watch.sights, secret, home.room, clock, pool_id)
        doors = (image_door(records, config.pool_dir, joining.doorman), *joining.doors(), fencing.routes())
        admission = Admission(records, home.room, watch.protected, pool_id, config.ha_admission)
        app = application(home, access, link, figures, roster, admission, doors, joining.service)
        leader = Leader(store, clock, candidate, timing)

        def makes(led: Records, lines: LedLines) -> Mapping[str, Work]:
            leading = dataclasses.replace(home, records=led)
            return {**workers(leading, lines), **guardians(leading, lines, watch, fencing.opens)}

        def lead() -> Awaitable[None]:
            return leader.run(lambda term: reign(term, records, link, clock, makes, figures.worker_failed))

        works: dict[str, Work] = {"access": access.run, "store_seen": lambda: seen.run(clock), "roster": roster.run}
        works["loads"] = home.loads.run
        if config.mdns and joining.authority is not None:
            works["mdns"] = Advertiser(candidate.server_id, place, joining.authority.fingerprint, config.host).run
        running = _begun({**works, **joining.works(link), "leader": lead}, clock, figures, stack)
        yield House(
            leading=running["leader"],
            app=app,
            records=records,
            access=access,
            first_token=first_token,
            token_file=config.data_dir / TOKEN_FILE,
            authority=joining.authority,
        )


async def _open_store(
    config: ServerConfig, clock: Clock, rng: random.Random, stack: contextlib.AsyncExitStack
) -> tuple[Store, Seen]:
    """The store, once it is known for the one seen before; what goes with its data directory is this server's alone."""
    store = await open_store(address_of(config), clock, rng)
    stack.push_async_callback(store.close)
    stack.enter_context(premises.taken(config.data_dir))
    seen = Seen(store, config.data_dir / SEEN_FILE, lambda: str(uuid.uuid4()))
    await seen.admit()
    return store, seen


async def _furnish(home: Household, timing: Timing) -> None:
    """What every installation has: a default pool, a volume for each disk of before volumes."""
    home.room.promised()  # all records are gone through for the first time here: later a leader would lapse by it
    if timing.is_alone:  # else what is being received may be another server's
        await home.images.sweep()
    await ensure_default(home.records, home.clock, home.pool_id)
    await adopt_disks(home.records, home.clock, home.pool_id)


def _begun(
    works: Mapping[str, Work], clock: Clock, figures: Figures, stack: contextlib.AsyncExitStack
) -> Mapping[str, asyncio.Task[None]]:
    running = {}
    for name, work in works.items():
        running[name] = asyncio.create_task(keep_going(name, work, clock, figures.worker_failed), name=name)
        stack.push_async_callback(_end, running[name])
    return running


def _candidate(config: ServerConfig, records: Records) -> Candidate:
    name = config.name or socket.gethostname()
    return Candidate(premises.server_id(config.data_dir, records.new_id()), name, str(uuid.uuid4()))


def place_of(config: ServerConfig, listening: str, authority: Authority | None) -> str:
    """Where nodes are told that this server is; empty: nowhere. What its certificate does not name they could not dial.

    :raise InvalidInput: that is what it is to advertise.
    """
    place = config.place(listening)
    host = urlsplit(place).hostname or ""
    if not place or authority is None or host in (name.lower() for name in authority.hosts()):
        return place
    if not config.advertise and not config.mdns:
        return ""
    remedy = f"novacron cluster issue-server {config.cluster_dir} --host {host}, with the names it has"
    raise InvalidInput.field("advertise", f"the server's certificate is not for {host}", remedy)


def address_of(config: ServerConfig) -> Address:
    """Where the store is. :raise InvalidInput: the setting is no store's address."""
    return parse(config.store) if config.store else SqliteAddress(config.data_dir / STORE_FILE)


async def _end(worker: asyncio.Task[None]) -> None:
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
