"""The API fuzzed from its own OpenAPI document: no 5xx but documented refusals, and every answer fits its schema.

The server runs in a thread of its own, on loopback, as the process serves it. Positive cases are pointed at objects
that exist half of the time, so that what lies behind the 404 is reached too. NOVACRON_FUZZ_EXAMPLES=60 asks more of
each operation.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance

from novacron.config import ServerConfig
from novacron.control.listen import server_for, tcp
from novacron.control.store.kinds import VOLUMES
from novacron.model.image import ImageState
from novacron.model.machine import MachineStatus
from novacron.model.node import NodeState
from tests.control.api import an_api

ASKED = os.environ.get("NOVACRON_FUZZ_EXAMPLES")
EXAMPLES = {GenerationMode.POSITIVE: 12, GenerationMode.NEGATIVE: 4}
"""Of each operation; what is wrong takes five times as long to make, and is refused before anything is done with it."""
EXISTING = {
    "vm": ["on", "off", "moving", "still"],
    "node": ["node-1", "node-2", "gone"],
    "image": ["tiny", "filling", "debian:latest"],
    "migration": ["nothing"],
    "bulk_migration": ["nothing"],
    "rehearsal": ["nothing"],
    "snapshot": ["nothing"],
    "schedule": ["hourly", "daily"],
    "pool": ["default", "fast", "nas"],
    "volume": ["data", "making", "new-0"],
    "network": ["net-1", "net-2"],
    "security_group": ["group-1", "group-2"],
}
A_POOL = {"driver": "directory", "options": {"path": "/srv/a"}}
_turns = {name: itertools.cycle([None, *refs]) for name, refs in EXISTING.items()}


class _Target:
    """A seeded server in a thread; `url` and `token` lead to it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)
        self.url = self.token = ""

    def __enter__(self) -> _Target:
        self._thread.start()
        assert self._up.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(lambda: setattr(self._server, "should_exit", True))
        self._thread.join(20)
        self._loop.close()

    async def _serve(self) -> None:
        config = ServerConfig(data_dir=self._directory, pool_dir=self._directory)
        async with an_api(self._directory) as api:
            node = await api.node("node-1", memory_mib=1 << 20)
            await api.node("node-2", memory_mib=1 << 20)
            await api.node("gone", state=NodeState.DOWN)
            await api.image("tiny", tags=("debian:latest",))
            await api.image("filling", state=ImageState.PENDING, files=())
            await api.vm("on", node=node, status=MachineStatus.RUNNING)
            await api.http.post("/api/v1/pools", json=A_POOL | {"name": "fast"})
            await api.http.post("/api/v1/pools", json=A_POOL | {"name": "nas", "shared": True})
            await api.http.post("/api/v1/volumes", json={"name": "making", "size_bytes": 1 << 30})
            await api.http.post("/api/v1/volumes", json={"name": "data", "size_bytes": 1 << 30})
            data = api.records.find(VOLUMES, "data").record
            await api.records.change(VOLUMES, data.id, lambda now: msgspec.structs.replace(now, task=None))
            await api.http.post("/api/v1/vms", json={"name": "new", "image": "tiny", "desired": "stopped"})
            await api.vm("still", node=node, status=MachineStatus.PAUSED)
            await api.vm("off", node=node)
            await api.vm("moving", node=node, status=MachineStatus.RUNNING)
            await api.vm("kept", node=node)
            for number in (1, 2):
                subnet = {"name": f"net-{number}", "ipv4": f"10.{number}.0.0/24"}
                assert (await api.http.post("/api/v1/networks", json=subnet)).status_code == 201
                group = {"name": f"group-{number}", "rules": [{"direction": "in", "group": f"group-{number}"}]}
                assert (await api.http.post("/api/v1/security_groups", json=group)).status_code == 201
            moved = await api.http.post("/api/v1/migrations", json={"vm": "moving"})
            for name, every_s in (("hourly", 3600), ("daily", 86400)):
                wish = {"name": name, "selector": {"tier": "db"}, "every_s": every_s}
                assert (await api.http.post("/api/v1/schedules", json=wish)).status_code == 201
            taken = await api.http.post("/api/v1/vms/kept/snapshots", json={"name": "one"})
            EXISTING["snapshot"][:] = [taken.json()["id"]]
            _turns["snapshot"] = itertools.cycle([None, *EXISTING["snapshot"]])
            emptied = await api.http.post("/api/v1/bulk-migrations", json={"drain": "node-2"})
            EXISTING["bulk_migration"][:] = [emptied.json()["id"]]
            _turns["bulk_migration"] = itertools.cycle([None, *EXISTING["bulk_migration"]])
            await api.http.patch("/api/v1/nodes/node-2", json={"cordoned": False})
            EXISTING["migration"][:] = [moved.json()["id"]]
            _turns["migration"] = itertools.cycle([None, *EXISTING["migration"]])
            listening = tcp("127.0.0.1", 0)
            self.url, self.token = f"http://127.0.0.1:{listening.getsockname()[1]}", api.token
            self._server = server_for(api.app, config, tls=False)
            serving = asyncio.create_task(self._server.serve(sockets=[listening]))
            await self._server.is_up()
            self._up.set()
            await serving


@pytest.fixture(scope="module")
def target() -> Iterator[_Target]:
    with tempfile.TemporaryDirectory() as directory, _Target(Path(directory)) as made:
        yield made


@pytest.fixture(scope="module")
def fuzzed(target: _Target) -> schemathesis.BaseSchema:
    config = schemathesis.Config.from_dict(
        {"phases": {"coverage": {"enabled": False}}, "headers": {"Authorization": f"Bearer {target.token}"}}
    )
    return schemathesis.openapi.from_url(f"{target.url}/api/openapi.json", config=config)


# Schema-valid and yet refused: names of nothing, images that do not fit, stale revisions. That is what 422 and 412 say.
# (Who may ask is tested by hand in test_api_access.py: the check for it does not see a configured header.)
TOO_SIMPLE = [positive_data_acceptance, ignored_auth, not_a_server_error]
REACHES_OUT = {"/api/v1/nodes/{node}/fence-device/power"}
"""What asks a host that the request before it named, which would be anybody's."""

REFUSALS = {"no_room", "node_unreachable"}
"""What may be said with a status from 500 up: there is no room, or nobody at the other end."""


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_breaks_the_api(fuzzed: schemathesis.BaseSchema, mode: GenerationMode) -> None:
    everything = [result.ok() for result in fuzzed.get_all_operations()]
    operations = [one for one in everything if one.path not in REACHES_OUT]
    assert len(everything) - len(operations) == len(REACHES_OUT)
    assert len(operations) > 25
    for operation in operations:
        try:
            strategy = operation.as_strategy(generation_mode=mode)
            _fuzz(strategy, mode)
        except Unsatisfiable:  # nothing can be wrong with a request that has no parameters
            assert mode is GenerationMode.NEGATIVE
            assert not operation.path_parameters
            assert not operation.query
            assert not operation.body


def _fuzz(cases: SearchStrategy[schemathesis.Case], mode: GenerationMode) -> None:
    @given(case=cases)
    @settings(
        max_examples=int(ASKED or EXAMPLES[mode]),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE:
            _lead_to_what_exists(case)
        response = case.call()
        refused_unread = [negative_data_rejection] if response.status_code == 413 else []  # a refusal, too
        case.validate_response(response, excluded_checks=[*TOO_SIMPLE, *refused_unread])
        assert response.status_code < 500 or response.json()["code"] in REFUSALS, response.text

    ask()


def _lead_to_what_exists(case: schemathesis.Case) -> None:
    for name in case.path_parameters:
        existing = next(_turns[name]) if name in _turns else None
        if existing is not None:
            case.path_parameters[name] = existing
