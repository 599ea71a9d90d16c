"""The control plane assembled: store, records, services, application and workers, opened and closed in order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
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
from novacron.control.ha.protected import Protected
from novacron.control.ha.rescuer import Rescuer
from novacron.control.ha.sights import Sights
from novacron.control.ha.warden import Warden
from novacron.control.images.cache import Cache
from novacron.control.images.distribution import Distribution
from novacron.control.images.door import router as image_door
from novacron.control.images.filler import Filler
from novacron.control.images.routes import router as image_routes
from novacron.control.images.service import ImageService
from novacron.control.images.view import ImageView
from novacron.control.line_listeners import Answerer, HelloListener, ReportListener
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
from novacron.control.nodes.registrar import Registrar
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
from novacron.control.room import Room
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
from novacron.wire.membership import Terms

STORE_FILE = "store.db"
HOUSEKEEPING_S = 60.0
NEVER = 1 << 62

_log = structlog.get_logger("house")


@dataclasses.dataclass(frozen=True, kw_only=True)
class House:
    """What is served. first_token: the admin's, when this is the first start."""

    app: FastAPI
    records: Records
    access: Access
    first_token: str | None
    token_file: Path

    async def until_lost(self) -> None:
        """Return when the record cache has lost the store."""
        with contextlib.suppress(Exception):
            await self.records.caught_up(NEVER)


@contextlib.asynccontextmanager
async def open_house(config: ServerConfig, clock: Clock) -> AsyncIterator[House]:
    """Everything up and working; closed in reverse afterwards. Agents and machines are not touched by that.

    :raise NovaCronError: what is on disk cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        secret, pool_id = premises.prepare(config)
        rng = random.SystemRandom()
        store = await open_store(address_of(config), clock, rng)
        stack.push_async_callback(store.close)
        seen = Seen(store, config.data_dir / SEEN_FILE, lambda: str(uuid.uuid4()))
        await seen.admit()
        records = Records(store, clock, rng)
        await records.start()
        stack.push_async_callback(records.stop)
        access = Access(store)
        first_token = await access.start(config.data_dir)
        link = Link(clock, secret, novacron.__version__)
        figures = Figures(records)
        room = Room(records, config)
        images = ImageService(records, room, clock, config.pool_dir)
        await images.sweep()
        await ensure_default(records, clock, pool_id)
        await adopt_disks(records, clock, pool_id)
        doors = (image_door(records, config.pool_dir, secret),)
        app = application(config, records, access, link, figures, clock, pool_id, room, images, doors)
        works = {
            **workers(config, records, access, link, clock, images, room),
            **guardians(config, records, link, clock, room, pool_id),
            "store_seen": lambda: seen.run(clock),
        }
        for name, work in works.items():
            worker = asyncio.create_task(keep_going(name, work, clock, figures.worker_failed), name=name)
            stack.push_async_callback(_end, worker)
        yield House(
            app=app,
            records=records,
            access=access,
            first_token=first_token,
            token_file=config.data_dir / TOKEN_FILE,
        )


def address_of(config: ServerConfig) -> Address:
    """Where the store is. :raise InvalidInput: the setting is no store's address."""
    return parse(config.store) if config.store else SqliteAddress(config.data_dir / STORE_FILE)


class Lines(Agents, Pulse, web.Door, Protocol):
    """All that is asked of the lines to the agents; `Link` is one."""

    def on_hello(self, listener: HelloListener) -> None:
        """Call `listener` when a node's line opens."""
        ...

    def on_report(self, listener: ReportListener) -> None:
        """Call `listener` with each heartbeat, after the hello and in order."""
        ...

    def on_question(self, terms: Terms, answerer: Answerer) -> None:
        """Tell nodes the terms, and have `answerer` answer what they ask."""
        ...


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
    doors: Sequence[APIRouter] = (),
) -> FastAPI:
    """The web application on these parts; `doors`: paths for agents, with a secret of their own. It starts nothing."""
    vm_view, node_view = VmView(records), NodeView(room, lines)
    moving, moving_views = _moving(records, room, lines, clock, pool_id)
    image_view, template_view, pool_view = ImageView(records), TemplateView(records), PoolView(records, pool_id)
    volume_view, network_view, group_view = VolumeView(records), NetworkView(records), GroupView(records)
    views: dict[str, View] = {
        VMS.prefix: vm_view.data,
        NODES.prefix: node_view.data,
        **moving_views,
        IMAGES.prefix: image_view.data,
        TEMPLATES.prefix: template_view.data,
        POOLS.prefix: pool_view.data,
        VOLUMES.prefix: volume_view.data,
    }
    views |= {NETWORKS.prefix: network_view.data, SECURITY_GROUPS.prefix: group_view.data}
    snapshot_view, schedule_view = SnapshotView(records), ScheduleView(records)
    views |= {SNAPSHOTS.prefix: snapshot_view.data, SCHEDULES.prefix: schedule_view.data}
    vm_service = VmService(records, lines, room, clock, pool_id)
    routers = (
        vm_routes(records, vm_service, vm_view),
        template_routes(records, TemplateService(records, vm_service, clock), template_view, vm_view),
        placement_routes(vm_service),
        copy_routes(vm_service, Copies(records, room, clock, pool_id), vm_view),
        nic_routes(NicService(records, room, clock), vm_view),
        media_routes(MediaService(records, clock), vm_view),
        disk_routes(DiskService(records, room, clock, pool_id), vm_view),
        network_routes(records, NetworkService(records, room, clock), network_view),
        group_routes(records, GroupService(records, room, clock), group_view),
        node_routes(records, NodeService(records, room, clock), node_view),
        *moving,
        image_routes(records, images, image_view),
        snapshot_routes(records, SnapshotService(records, room, clock), snapshot_view, image_view),
        schedule_routes(records, ScheduleService(records, clock), schedule_view),
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
            routers=(*routers, *doors),
            tls=config.tls_cert is not None,
        )
    )


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
    access: Access,
    lines: Lines,
    clock: Clock,
    images: ImageService,
    room: Room,
) -> Mapping[str, Work]:
    """What runs for as long as the house is open, by name. Takes in what nodes say from now on."""
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
            revision = await records.store.revision()
            if revision > config.keep_revisions:
                await records.store.compact(revision - config.keep_revisions)

    distribution = Distribution(records, lines)
    conductor, bulk = movers(config, records, room, lines, clock, distribution)
    return {
        "filler": Filler(records, images, clock, config.import_allow, config.import_ca).run,
        "cache": Cache(records, lines, clock, distribution).run,
        "access": access.run,
        "reconciler": Reconciler(records, lines, clock, distribution).run,
        "conductor": conductor.run,
        "bulk_migrations": bulk.run,
        "rehearsals": RehearsalWorker(records, lines, clock, distribution).run,
        "weaver": weaver.run,
        "observer": observer.run,
        "prober": prober.run,
        "volumes": VolumeWorker(records, lines, clock, distribution).run,
        "snapshots": SnapshotWorker(records, lines, images, clock, distribution).run,
        "schedules": Keeper(records, SnapshotService(records, room, clock), clock).run,
        "housekeeping": keep_house,
    }


def guardians(
    config: ServerConfig, records: Records, lines: Lines, clock: Clock, room: Room, pool_id: str
) -> Mapping[str, Work]:
    """Who watches over nodes and over the VMs of those that fail. Answers what nodes ask from now on."""
    server_id, timing, sights = premises.server_id(config.data_dir), config.timing, Sights(records, clock)
    lines.on_question(
        Terms(server_id=server_id, servers=(server_id,), timing=timing), Registrar(records, sights).answer
    )
    protected = Protected(records)
    warden = Warden(records, sights, protected, server_id, clock, timing)
    return {
        "warden": warden.run,
        "health": Health(records, lines, clock, sights, warden, timing).run,
        "rescuer": Rescuer(records, protected, room, clock, pool_id).run,
    }


async def _end(worker: asyncio.Task[None]) -> None:
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
