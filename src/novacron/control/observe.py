"""What the server counts about itself and its cluster, for Prometheus."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from novacron.control.store.kinds import IMAGES, MIGRATIONS, NODES, VMS, VOLUMES
from novacron.control.store.records import Records
from novacron.model.image import ImageState
from novacron.model.migration import MigrationState
from novacron.model.node import NodeState
from novacron.model.vm import VmState, state_of
from novacron.model.volume import VolumeState
from novacron.model.volume import state_of as volume_state_of

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Figures:
    """Everything that is counted. `text` is what Prometheus reads."""

    def __init__(self, records: Records) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Cluster(records))
        self.requests = Counter(
            "novacron_http_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.latency = Histogram(
            "novacron_http_request_seconds",
            "Time from the request's first byte to the answer's last.",
            ("method", "route"),
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.under_way = Gauge("novacron_http_requests_under_way", "Requests being answered.", registry=self.registry)
        self.worker_failures = Counter(
            "novacron_worker_failures",
            "Times a worker died and was started again.",
            ("worker",),
            registry=self.registry,
        )

    def worker_failed(self, name: str) -> None:
        """Count one death of a worker."""
        self.worker_failures.labels(name).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Cluster(Collector):
    """Objects by state, counted from the records at each reading; a state that none is in is told as 0."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def collect(self) -> Iterable[Metric]:
        records = self._records
        vms = (state_of(stored.record).value for stored in records.all(VMS))
        yield _by_state("novacron_vms", "VMs by state.", VmState, vms)
        nodes = (stored.record.state.value for stored in records.all(NODES))
        yield _by_state("novacron_nodes", "Nodes by state.", NodeState, nodes)
        images = (stored.record.state.value for stored in records.all(IMAGES))
        yield _by_state("novacron_images", "Images by state.", ImageState, images)
        volumes = (volume_state_of(stored.record).value for stored in records.all(VOLUMES))
        yield _by_state("novacron_volumes", "Volumes by state.", VolumeState, volumes)
        migrations = (stored.record.state.value for stored in records.all(MIGRATIONS))
        yield _by_state("novacron_migrations", "Migrations by state.", MigrationState, migrations)
        yield GaugeMetricFamily("novacron_store_revision", "Revision the record cache stands at.", records.revision)


def _by_state(name: str, text: str, states: Iterable[str], seen: Iterator[str]) -> Metric:
    counted = Tally(seen)
    family = GaugeMetricFamily(name, text, labels=("state",))
    for state in states:
        family.add_metric((str(state),), counted[str(state)])
    return family


class Observed:
    """ASGI middleware: counts and times requests by route template, so that ids never become label values."""

    def __init__(self, app: ASGIApp, figures: Figures) -> None:
        self._app = app
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began_s = time.perf_counter()
        self._figures.under_way.inc()
        try:
            await self._app(scope, receive, noting)
        finally:
            self._figures.under_way.dec()
            route = getattr(scope.get("route"), "path", "(none)")
            method = scope["method"] if route != "(none)" else "(any)"
            self._figures.requests.labels(method, route, str(status)).inc()
            self._figures.latency.labels(method, route).observe(time.perf_counter() - began_s)
