"""Who does what the records ask for: made anew for each term, on the one server that leads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

from novacron.control import once
from novacron.control.balancer.service import BalancerService
from novacron.control.balancer.survey import Surveyor as BalancerSurveyor
from novacron.control.balancer.worker import BalancerWorker
from novacron.control.bulk_migrations.outlook import Surveyor
from novacron.control.bulk_migrations.worker import BulkWorker
from novacron.control.fencing.device import Opens
from novacron.control.fencing.fencer import Fencer
from novacron.control.ha.protected import Protected
from novacron.control.ha.rescuer import Rescuer
from novacron.control.ha.sights import Sights
from novacron.control.ha.warden import Warden
from novacron.control.household import Household
from novacron.control.images.cache import Cache
from novacron.control.images.distribution import Distribution
from novacron.control.images.filler import Filler
from novacron.control.joining import ledger
from novacron.control.line_listeners import Answerer
from novacron.control.link import Agents
from novacron.control.migrations.conductor import Conductor
from novacron.control.migrations.links import Links
from novacron.control.migrations.planner import Planner
from novacron.control.migrations.queue import Slots
from novacron.control.migrations.service import MigrationService
from novacron.control.networks.weaver import Weaver
from novacron.control.nodes.health import Health
from novacron.control.nodes.health import Lines as Silences
from novacron.control.nodes.observer import Observer
from novacron.control.nodes.registrar import Registrar
from novacron.control.pools.prober import Prober
from novacron.control.rehearsals.worker import RehearsalWorker
from novacron.control.reign import LedLines
from novacron.control.roster import Roster
from novacron.control.snapshots.keeper import Keeper
from novacron.control.snapshots.service import SnapshotService
from novacron.control.snapshots.worker import SnapshotWorker
from novacron.control.supervise import Work
from novacron.control.vms.reconciler import Reconciler
from novacron.control.volumes.worker import VolumeWorker
from novacron.wire.membership import Terms

HOUSEKEEPING_S = 60.0


class Members(Protocol):
    """Where nodes ask about their membership; `Link` is one."""

    def on_question(self, terms: Callable[[], Terms], answerer: Answerer) -> None:
        """Tell nodes the terms, and have `answerer` answer what they ask."""
        ...


def movers(home: Household, lines: Agents, distribution: Distribution) -> Mapping[str, Work]:
    """Who conducts migrations, and who has those of bulk migrations and of the balancer begun."""
    config, records, clock, room = home.config, home.records, home.clock, home.room
    planner = Planner(records, room, lines, clock)
    service = MigrationService(records, room, clock, planner, Links(records, lines, clock, planner))
    slots = Slots(config.migrations_per_node, config.migrations_at_once)
    conductor = Conductor(records, lines, clock, service, distribution, slots)
    balancing = BalancerService(records, BalancerSurveyor(records, room, planner, home.loads, clock), clock)
    return {
        "conductor": conductor.run,
        "bulk_migrations": BulkWorker(records, room, service, Surveyor(records, room, planner), clock).run,
        "balancer": BalancerWorker(records, balancing, service, clock).run,
    }


def workers(home: Household, lines: LedLines) -> Mapping[str, Work]:
    """What runs on the one server that leads, by name. Takes in what nodes say from now on."""
    config, records, clock, images = home.config, home.records, home.clock, home.images
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
    return {
        "filler": Filler(records, images, clock, config.import_allow, config.import_ca).run,
        "cache": Cache(records, lines, clock, distribution).run,
        "reconciler": Reconciler(records, lines, clock, distribution).run,
        **movers(home, lines, distribution),
        "rehearsals": RehearsalWorker(records, lines, clock, distribution).run,
        "weaver": weaver.run,
        "observer": observer.run,
        "prober": prober.run,
        "volumes": VolumeWorker(records, lines, clock, distribution).run,
        "snapshots": SnapshotWorker(records, lines, images, clock, distribution).run,
        "schedules": Keeper(records, SnapshotService(records, home.room, clock), clock).run,
        "housekeeping": keep_house,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
    """What a server sees of nodes and of guarded VMs, also while another leads: it may have to lead next."""

    server_id: str
    sights: Sights
    protected: Protected


def watching(home: Household, lines: Members, roster: Roster) -> Watch:
    """Answer from now on what nodes ask about their membership, and see what comes of it."""
    records, timing = home.records, home.config.timing
    watch = Watch(server_id=roster.server_id, sights=Sights(records, home.clock), protected=Protected(records))

    def terms() -> Terms:
        servers, places = roster.living(), roster.places()
        return Terms(server_id=roster.server_id, servers=servers, timing=timing, places=places)

    lines.on_question(terms, Registrar(records, watch.sights, roster.living, roster.places).answer)
    return watch


def guardians(home: Household, lines: Silences, watch: Watch, opens: Opens) -> Mapping[str, Work]:
    """Who watches over nodes and over the VMs of those that fail, on the one server that leads.

    opens: reaches a fence device by its record.
    """
    records, clock, timing = home.records, home.clock, home.config.timing
    warden = Warden(records, watch.sights, watch.protected, watch.server_id, clock, timing)
    return {
        "warden": warden.run,
        "fencer": Fencer(records, warden, opens, clock).run,
        "health": Health(records, lines, clock, watch.sights, warden, timing).run,
        "rescuer": Rescuer(records, watch.protected, home.room, clock, home.pool_id).run,
    }
