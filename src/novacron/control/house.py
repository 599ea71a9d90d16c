"""The control plane assembled: store, records, services, application and workers, opened and closed in order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import structlog
from fastapi import APIRouter, FastAPI

import novacron
from novacron.clock import Clock
from novacron.config import ServerConfig
from novacron.control import once, premises, web
from novacron.control.access.service import TOKEN_FILE, Access
from novacron.control.bulk_migrations.outlook import Surveyor
from novacron.control.bulk_migrations.routes import router as bulk_routes
from novacron.control.bulk_migrations.service import BulkMigrationService
from novacron.control.bulk_migrations.view import BulkMigrationView
from novacron.control.bulk_migrations.worker import BulkWorker
from novacron.control.images.cache import Cache
from novacron.control.images.distribution import Distribution
from novacron.control.images.door import router as image_door
from novacron.control.images.filler import Filler
from novacron.control.images.routes import router as image_routes
from novacron.control.images.service import ImageService
from novacron.control.images.view import ImageView
from novacron.control.joining import ledger
from novacron.control.joining.authority import Authority
from novacron.control.joining.parts import Joining
from novacron.control.joining.routes import router as joining_routes
from novacron.control.joining.service import JoinService
from novacron.control.leader import Leader
from novacron.control.link import Agents, Link
from novacron.control.migrations.conductor import Conductor
from novacron.control.migrations.kept_copies import KeptCopies
from novacron.control.migrations.link_routes import router as link_routes
from novacron.control.migrations.link_routes import shown as link_shown
from novacron.control.migrations.links import Links
from novacron.control.migrations.planner import Planner
from novacron.control.migrations.policies import PolicyService
from novacron.control.migrations.policy_routes import router as policy_routes
from novacron.control.migrations.routes import router as migration_routes
from novacron.control.migrations.service import MigrationService
from novacron.control.migrations.view import MigrationView, PolicyView
from novacron.control.networks.group_routes import router as group_routes
from novacron.control.networks.groups import GroupService
from novacron.control.networks.routes import router as network_routes
from novacron.control.networks.service import NetworkService
from novacron.control.networks.view import GroupView, NetworkView
from novacron.control.networks.weaver import Weaver
from novacron.control.nodes.health import Health
from novacron.control.nodes.observer import Observer
from novacron.control.nodes.routes import router as node_routes
from novacron.control.nodes.service import NodeService
from novacron.control.nodes.view import NodeView, Pulse
from novacron.control.observe import Figures
from novacron.control.pools.prober import Prober
from novacron.control.pools.routes import router as pool_routes
from novacron.control.pools.service import PoolService, ensure_default
from novacron.control.pools.view import PoolView
from novacron.control.rehearsals.routes import router as rehearsal_routes
from novacron.control.rehearsals.service import RehearsalService
from novacron.control.rehearsals.view import RehearsalView
from novacron.control.rehearsals.worker import RehearsalWorker
from novacron.control.reign import LedLines, reign
from novacron.control.room import Room
from novacron.control.roster import Roster
from novacron.control.roster_routes import router as server_routes
from novacron.control.snapshots.keeper import Keeper
from novacron.control.snapshots.routes import router as snapshot_routes
from novacron.control.snapshots.schedule_routes import router as schedule_routes
from novacron.control.snapshots.schedules import ScheduleService
from novacron.control.snapshots.service import SnapshotService
from novacron.control.snapshots.view import ScheduleView, SnapshotView
from novacron.control.snapshots.worker import SnapshotWorker
from novacron.control.store.address import Address, SqliteAddress, parse
from novacron.control.store.identity import SEEN_FILE, Seen
from novacron.control.store.kinds import (
    BULK_MIGRATIONS,
    IMAGES,
    LINKS,
    MIGRATIONS,
    NETWORKS,
    NODES,
    POLICIES,
    POOLS,
    REHEARSALS,
    SCHEDULES,
    SECURITY_GROUPS,
    SNAPSHOTS,
    TEMPLATES,
    VMS,
    VOLUMES,
)
from novacron.control.store.opening import open_store
from novacron.control.store.records import Records
from novacron.control.stream import Stream, View
from novacron.control.supervise import Work, keep_going
from novacron.control.templates.routes import router as template_routes
from novacron.control.templates.service import TemplateService
from novacron.control.templates.view import TemplateView
from novacron.control.vms.copies import Copies
from novacron.control.vms.copy_routes import router as copy_routes
from novacron.control.vms.disk_routes import router as disk_routes
from novacron.control.vms.disks import DiskService
from novacron.control.vms.media import MediaService
from novacron.control.vms.media_routes import router as media_routes
from novacron.control.vms.nic_routes import router as nic_routes
from novacron.control.vms.nics import NicService
from novacron.control.vms.placement_routes import router as placement_routes
from novacron.control.vms.reconciler import Reconciler
from novacron.control.vms.routes import router as vm_routes
from novacron.control.vms.service import VmService
from novacron.control.vms.view import VmView
from novacron.control.volumes.adopt import adopt_disks
from novacron.control.volumes.routes import router as volume_routes
from novacron.control.volumes.service import VolumeService
from novacron.control.volumes.view import VolumeView
from novacron.control.volumes.worker import VolumeWorker
from novacron.model.leadership import ALONE, STANDARD, Candidate

STORE_FILE = "store.db"
HOUSEKEEPING_S = 60.0
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
        where = address_of(config)
        store = await open_store(where, clock, rng)
        stack.push_async_callback(store.close)
        stack.enter_context(premises.taken(config.data_dir))
        timing = ALONE if isinstance(where, SqliteAddress) else STANDARD
        seen = Seen(store, config.data_dir / SEEN_FILE, lambda: str(uuid.uuid4()))
        await seen.admit()
        records = Records(store, clock, rng)
        await records.start()
        stack.push_async_callback(records.stop)
        access = Access(store)
        first_token = await access.start(config.data_dir)
        joining = Joining(config, records, clock, secret)
        await joining.start()
        link = Link(clock, secret, novacron.__version__, joining.doorman)
        figures = Figures(records)
        room = Room(records, config)
        images = ImageService(records, room, clock, config.pool_dir)
        if timing.is_alone:  # else what is being received may be another server's
            await images.sweep()
        await ensure_default(records, clock, pool_id)
        await adopt_disks(records, clock, pool_id)
        candidate = _candidate(config, records)
        roster = Roster(store, clock, candidate, address, timing)
        stack.push_async_callback(roster.leave)
        doors = (image_door(records, config.pool_dir, joining.doorman), *joining.doors())
        app = application(
            config, records, access, link, figures, clock, pool_id, room, images, roster, doors, joining.service
        )
        leader = Leader(store, clock, candidate, timing)

        def makes(led: Records, lines: LedLines) -> Mapping[str, Work]:
            return workers(config, led, lines, clock, images, room)

        def lead() -> Awaitable[None]:
            return leader.run(lambda term: reign(term, records, link, clock, makes, figures.worker_failed))

        works: dict[str, Work] = {"access": access.run, "store_seen": lambda: seen.run(clock), "roster": roster.run}
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


def address_of(config: ServerConfig) -> Address:
    """Where the store is. :raise InvalidInput: the setting is no store's address."""
    return parse(config.store) if config.store else SqliteAddress(config.data_dir / STORE_FILE)


class Lines(Agents, Pulse, web.Door, Protocol):
    """All that requests need of the lines to the agents; `Link` is one."""


def application(
    config: ServerConfig,
    records: Records,
    access: Access,
    lines: Lines,
    figures: Figures,
    clock: Clock,
    pool_id: str,
    room: Room,
    images: ImageService,
    roster: Roster,
    doors: Sequence[APIRouter] = (),
    joining: JoinService | None = None,
) -> FastAPI:
    """The web application on these parts; it starts nothing. doors: for agents, each checks who asks."""
    vm_view, node_view = VmView(records), NodeView(room, lines)
    moving, moving_views = _moving(records, room, lines, clock, pool_id)
    image_view, template_view, pool_view = ImageView(records), TemplateView(records), PoolView(records, pool_id)
    volume_view = VolumeView(records)
    networking, networking_views = _networking(records, room, clock)
    keeping, keeping_views = _keeping(records, room, clock, image_view)
    views: dict[str, View] = {
        VMS.prefix: vm_view.data,
        NODES.prefix: node_view.data,
        **moving_views,
        IMAGES.prefix: image_view.data,
        TEMPLATES.prefix: template_view.data,
        POOLS.prefix: pool_view.data,
        VOLUMES.prefix: volume_view.data,
        **networking_views,
        **keeping_views,
    }
    vm_service = VmService(records, lines, room, clock, pool_id)
    routers = (
        vm_routes(records, vm_service, vm_view),
        template_routes(records, TemplateService(records, vm_service, clock), template_view, vm_view),
        placement_routes(vm_service),
        copy_routes(vm_service, Copies(records, room, clock, pool_id), vm_view),
        nic_routes(NicService(records, room, clock), vm_view),
        media_routes(MediaService(records, clock), vm_view),
        disk_routes(DiskService(records, room, clock, pool_id), vm_view),
        node_routes(records, NodeService(records, room, clock), node_view),
        joining_routes(joining or JoinService(records, clock)),
        image_routes(records, images, image_view),
        pool_routes(records, PoolService(records, room, clock, pool_id), pool_view),
        volume_routes(records, VolumeService(records, room, clock, pool_id), volume_view),
    )
    return web.build(
        web.Parts(
            records=records,
            clock=clock,
            access=access,
            events=Stream(records, views),
            door=lines,
            figures=figures,
            routers=(*routers, *moving, *networking, *keeping, server_routes(roster), *doors),
            tls=config.has_tls,
        )
    )


def _networking(records: Records, room: Room, clock: Clock) -> tuple[Sequence[APIRouter], Mapping[str, View]]:
    """What is asked of networks and security groups, and how they are shown."""
    networks, groups = NetworkView(records), GroupView(records)
    routers = (
        network_routes(records, NetworkService(records, room, clock), networks),
        group_routes(records, GroupService(records, room, clock), groups),
    )
    return routers, {NETWORKS.prefix: networks.data, SECURITY_GROUPS.prefix: groups.data}


def _keeping(
    records: Records, room: Room, clock: Clock, images: ImageView
) -> tuple[Sequence[APIRouter], Mapping[str, View]]:
    """What is asked of snapshots and their schedules, and how they are shown."""
    snapshots, schedules = SnapshotView(records), ScheduleView(records)
    routers = (
        snapshot_routes(records, SnapshotService(records, room, clock), snapshots, images),
        schedule_routes(records, ScheduleService(records, clock), schedules),
    )
    return routers, {SNAPSHOTS.prefix: snapshots.data, SCHEDULES.prefix: schedules.data}


def _moving(
    records: Records, room: Room, lines: Lines, clock: Clock, pool_id: str
) -> tuple[Sequence[APIRouter], Mapping[str, View]]:
    """What is asked of migrations, one and many, of rehearsals and policies, and how they are shown."""
    planner = Planner(records, room, lines, clock)
    links = Links(records, lines, clock, planner)
    service = MigrationService(records, room, clock, planner, links)
    bulk = BulkMigrationService(records, room, clock, Surveyor(records, room, planner))
    view, policy_view, bulk_view = MigrationView(records), PolicyView(records), BulkMigrationView(records)
    rehearsals, rehearsal_view = RehearsalService(records, room, clock, service, pool_id), RehearsalView(records)
    routers = (
        migration_routes(records, service, KeptCopies(records, lines, clock), view),
        link_routes(records, links, clock),
        policy_routes(records, PolicyService(records, room, clock), policy_view),
        bulk_routes(records, bulk, bulk_view),
        rehearsal_routes(records, rehearsals, rehearsal_view),
    )
    views: dict[str, View] = {
        MIGRATIONS.prefix: view.data,
        POLICIES.prefix: policy_view.data,
        BULK_MIGRATIONS.prefix: bulk_view.data,
        REHEARSALS.prefix: rehearsal_view.data,
        LINKS.prefix: lambda figure, _: link_shown(records, clock, figure),
    }
    return routers, views


def movers(
    config: ServerConfig, records: Records, room: Room, lines: Agents, clock: Clock, distribution: Distribution
) -> tuple[Conductor, BulkWorker]:
    """Who conducts migrations, and who has those of bulk migrations begun."""
    planner = Planner(records, room, lines, clock)
    service = MigrationService(records, room, clock, planner, Links(records, lines, clock, planner))
    conductor = Conductor(records, lines, clock, service, distribution, config.migrations_per_node)
    return conductor, BulkWorker(records, room, service, Surveyor(records, room, planner), clock)


def workers(
    config: ServerConfig,
    records: Records,
    lines: LedLines,
    clock: Clock,
    images: ImageService,
    room: Room,
) -> Mapping[str, Work]:
    """What runs on the one server that leads, by name. Takes in what nodes say from now on."""
    observer = Observer(records, lines, clock)
    lines.on_hello(observer.hello)
    lines.on_report(observer.report)
    weaver = Weaver(records, lines, clock)
    lines.on_hello(weaver.hello)
    prober = Prober(records, lines, clock)
    lines.on_hello(prober.hello)

    async def keep_house() -> None:
        while True:
            await clock.sleep(HOUSEKEEPING_S)
            await once.sweep(records.store, clock.wall())
            await ledger.sweep(records.store, clock.wall())
            revision = await records.store.revision()
            if revision > config.keep_revisions:
                await records.store.compact(revision - config.keep_revisions)

    distribution = Distribution(records, lines)
    conductor, bulk = movers(config, records, room, lines, clock, distribution)
    return {
        "filler": Filler(records, images, clock, config.import_allow, config.import_ca).run,
        "cache": Cache(records, lines, clock, distribution).run,
        "reconciler": Reconciler(records, lines, clock, distribution).run,
        "conductor": conductor.run,
        "bulk_migrations": bulk.run,
        "rehearsals": RehearsalWorker(records, lines, clock, distribution).run,
        "weaver": weaver.run,
        "observer": observer.run,
        "health": Health(records, lines, clock).run,
        "prober": prober.run,
        "volumes": VolumeWorker(records, lines, clock, distribution).run,
        "snapshots": SnapshotWorker(records, lines, images, clock, distribution).run,
        "schedules": Keeper(records, SnapshotService(records, room, clock), clock).run,
        "housekeeping": keep_house,
    }


async def _end(worker: asyncio.Task[None]) -> None:
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
