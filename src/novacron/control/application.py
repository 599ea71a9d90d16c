"""The web application: who answers what is asked, and how what is kept is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from fastapi import APIRouter, FastAPI

from novacron.control import web
from novacron.control.access.service import Access
from novacron.control.balancer.routes import router as balancer_routes
from novacron.control.balancer.service import BalancerService
from novacron.control.balancer.survey import Surveyor as BalancerSurveyor
from novacron.control.balancer.view import settings_shown
from novacron.control.bulk_migrations.outlook import Surveyor
from novacron.control.bulk_migrations.routes import router as bulk_routes
from novacron.control.bulk_migrations.service import BulkMigrationService
from novacron.control.bulk_migrations.view import BulkMigrationView
from novacron.control.household import Household
from novacron.control.images.routes import router as image_routes
from novacron.control.images.view import ImageView
from novacron.control.joining.routes import router as joining_routes
from novacron.control.joining.service import JoinService
from novacron.control.link import Agents
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
from novacron.control.nodes.routes import router as node_routes
from novacron.control.nodes.service import NodeService
from novacron.control.nodes.view import NodeView, Pulse
from novacron.control.observe import Figures
from novacron.control.pools.routes import router as pool_routes
from novacron.control.pools.service import PoolService
from novacron.control.pools.view import PoolView
from novacron.control.rehearsals.routes import router as rehearsal_routes
from novacron.control.rehearsals.service import RehearsalService
from novacron.control.rehearsals.view import RehearsalView
from novacron.control.roster import Roster
from novacron.control.roster_routes import router as server_routes
from novacron.control.snapshots.routes import router as snapshot_routes
from novacron.control.snapshots.schedule_routes import router as schedule_routes
from novacron.control.snapshots.schedules import ScheduleService
from novacron.control.snapshots.service import SnapshotService
from novacron.control.snapshots.view import ScheduleView, SnapshotView
from novacron.control.store.kinds import (
    BALANCER,
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
from novacron.control.stream import Stream, View
from novacron.control.templates.routes import router as template_routes
from novacron.control.templates.service import TemplateService
from novacron.control.templates.view import TemplateView
from novacron.control.vms.admitting import Admits
from novacron.control.vms.copies import Copies
from novacron.control.vms.copy_routes import router as copy_routes
from novacron.control.vms.disk_routes import router as disk_routes
from novacron.control.vms.disks import DiskService
from novacron.control.vms.media import MediaService
from novacron.control.vms.media_routes import router as media_routes
from novacron.control.vms.nic_routes import router as nic_routes
from novacron.control.vms.nics import NicService
from novacron.control.vms.placement_routes import router as placement_routes
from novacron.control.vms.routes import router as vm_routes
from novacron.control.vms.service import VmService
from novacron.control.vms.view import VmView
from novacron.control.volumes.routes import router as volume_routes
from novacron.control.volumes.service import VolumeService
from novacron.control.volumes.view import VolumeView


class Lines(Agents, Pulse, web.Door, Protocol):
    """All that requests need of the lines to the agents; `Link` is one."""


def application(
    home: Household,
    access: Access,
    lines: Lines,
    figures: Figures,
    roster: Roster,
    admission: Admits,
    doors: Sequence[APIRouter] = (),
    joining: JoinService | None = None,
) -> FastAPI:
    """The web application on these parts; it starts nothing. doors: more; agents' check who asks."""
    records, clock, room, pool_id = home.records, home.clock, home.room, home.pool_id
    vm_view, node_view, volume_view = VmView(records), NodeView(room, lines), VolumeView(records)
    moving, moving_views = _moving(home, lines)
    image_view, template_view, pool_view = ImageView(records), TemplateView(records), PoolView(records, pool_id)
    networking, networking_views = _networking(home)
    keeping, keeping_views = _keeping(home, image_view)
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
    vm_service = VmService(records, lines, room, clock, pool_id, admission)
    routers = (
        vm_routes(records, vm_service, vm_view),
        template_routes(records, TemplateService(records, vm_service, clock), template_view, vm_view),
        placement_routes(vm_service),
        copy_routes(vm_service, Copies(records, room, clock, pool_id, admission), vm_view),
        nic_routes(NicService(records, room, clock), vm_view),
        media_routes(MediaService(records, clock), vm_view),
        disk_routes(DiskService(records, room, clock, pool_id), vm_view),
        node_routes(records, NodeService(records, room, clock), node_view),
        joining_routes(joining or JoinService(records, clock)),
        image_routes(records, home.images, image_view),
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
            tls=home.config.has_tls,
        )
    )


def _networking(home: Household) -> tuple[Sequence[APIRouter], Mapping[str, View]]:
    """What is asked of networks and security groups, and how they are shown."""
    records, room, clock = home.records, home.room, home.clock
    networks, groups = NetworkView(records), GroupView(records)
    routers = (
        network_routes(records, NetworkService(records, room, clock), networks),
        group_routes(records, GroupService(records, room, clock), groups),
    )
    return routers, {NETWORKS.prefix: networks.data, SECURITY_GROUPS.prefix: groups.data}


def _keeping(home: Household, images: ImageView) -> tuple[Sequence[APIRouter], Mapping[str, View]]:
    """What is asked of snapshots and their schedules, and how they are shown."""
    records, room, clock = home.records, home.room, home.clock
    snapshots, schedules = SnapshotView(records), ScheduleView(records)
    routers = (
        snapshot_routes(records, SnapshotService(records, room, clock), snapshots, images),
        schedule_routes(records, ScheduleService(records, clock), schedules),
    )
    return routers, {SNAPSHOTS.prefix: snapshots.data, SCHEDULES.prefix: schedules.data}


def _moving(home: Household, lines: Lines) -> tuple[Sequence[APIRouter], Mapping[str, View]]:
    """What is asked of migrations, one and many, of rehearsals, policies and the balancer, and how they are shown."""
    records, room, clock, pool_id, loads = home.records, home.room, home.clock, home.pool_id, home.loads
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
        balancer_routes(BalancerService(records, BalancerSurveyor(records, room, planner, loads, clock), clock)),
    )
    views: dict[str, View] = {
        MIGRATIONS.prefix: view.data,
        POLICIES.prefix: policy_view.data,
        BULK_MIGRATIONS.prefix: bulk_view.data,
        REHEARSALS.prefix: rehearsal_view.data,
        BALANCER.prefix: settings_shown,
        LINKS.prefix: lambda figure, _: link_shown(records, clock, figure),
    }
    return routers, views
