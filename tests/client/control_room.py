"""A small server that speaks the wire's words: answers are scripted, events are numbered, kept and replayed."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from novacron.errors import NovaCronError
from novacron.model.event import Event, ObjectType
from novacron.wire.rest.images import Image
from novacron.wire.rest.migrations import Migration
from novacron.wire.rest.networks import Network
from novacron.wire.rest.nodes import Node
from novacron.wire.rest.pools import Pool
from novacron.wire.rest.security_groups import SecurityGroup
from novacron.wire.rest.vms import Vm
from novacron.wire.rest.volumes import Volume
from novacron.wire.stream import ErrorFrame, EventFrame, Ready, Resync, Subscribe

NOW = "2026-11-23T12:00:00Z"
VM_ID = "01940000-0000-7000-8000-000000000001"
NODE_ID = "01940000-0000-7000-8000-000000000002"
IMAGE_ID = "01940000-0000-7000-8000-000000000003"
MIGRATION_ID = "01940000-0000-7000-8000-000000000004"
POOL_ID = "01940000-0000-7000-8000-000000000005"
VOLUME_ID = "01940000-0000-7000-8000-000000000006"
NETWORK_ID = "01940000-0000-7000-8000-000000000021"
GROUP_ID = "01940000-0000-7000-8000-000000000031"

Answerer = Callable[[Request], Awaitable[Response]]


def vm(**changes: Any) -> dict[str, Any]:
    """A VM as the API shows it; the wire's own model checks the shape."""
    data = {
        "id": VM_ID, "name": "web-1", "description": "", "labels": {"tier": "web"}, "type": "kvm", "state": "running",
        "desired": "running", "task": None, "problem": None, "pending": [],
        "node": "node-1", "node_id": NODE_ID, "generation": 1,
        "migration_id": None, "image_id": IMAGE_ID, "vcpus": 2, "memory_mib": 2048, "machine": "q35",
        "firmware": "auto", "kernel_cmdline": "", "machine_type": "pc-q35-7.2", "cpu_model": "max",
        "accelerator": "tcg", "pid": 4711, "disks": [{"volume_id": VM_ID, "size_bytes": 10 << 30}],
        "nics": [{"id": NODE_ID, "mac": "52:54:00:00:00:01", "network": "user", "forwards": [{"guest_port": 22}]}],
        "endpoints": [{"nic_id": NODE_ID, "guest_port": 22, "host": "127.0.0.1", "host_port": 40022}],
        "media": [], "guest_agent": False, "cloud_init": False, "max_vcpus": 0, "max_memory_mib": 0, "tpm": False,
        "secure_boot": False, "shared_memory": False, "placement": {}, "ha": {}, "parent_id": None, "snapshot_id": None,
        "created_at": NOW, "updated_at": NOW, "state_since": NOW, "revision": 10,
    }  # fmt: skip
    return json.loads(Vm.model_validate(data | changes).model_dump_json())  # type: ignore[no-any-return]


def node(**changes: Any) -> dict[str, Any]:
    data = {
        "id": NODE_ID, "name": "node-1", "labels": {}, "state": "up", "state_reason": "", "state_since": NOW,
        "cordoned": False, "taints": [], "usage": {"memory_available_mib": 8000, "load_1m": 0.5, "machines_running": 1},
        "facts": {
            "hostname": "host-1", "kernel": "6.1", "architecture": "x86_64", "boot_id": VM_ID, "cpu_model": "EPYC",
            "cpu_flags": ["sse2"], "cpu_count": 4, "memory_mib": 16384, "agent_version": "0.1.0",
            "drivers": [{"name": "qemu", "version": "7.2.0", "accelerator": {"name": "tcg", "reason": "no kvm"}}],
        },
        "heard_ago_s": 0.5, "epoch": 3,
        "fence_class": "timer", "vm_count": 1, "memory_committed_mib": 2048, "created_at": NOW, "updated_at": NOW,
        "revision": 20,
    }  # fmt: skip
    return json.loads(Node.model_validate(data | changes).model_dump_json())  # type: ignore[no-any-return]


def pool(**changes: Any) -> dict[str, Any]:
    data = {
        "id": POOL_ID, "name": "fast", "description": "", "labels": {}, "driver": "directory",
        "options": {"path": "/srv/fast"}, "shared": False, "is_default": False, "image_cache_bytes": 0,
        "quota_bytes": 40 << 30,
        "reach": [
            {"node": "node-1", "node_id": NODE_ID, "available": True, "free_bytes": 6 << 30, "size_bytes": 10 << 30,
             "checked_at": NOW},
            {"node": "node-2", "node_id": VM_ID, "available": False, "reason": "/srv/fast is missing",
             "checked_at": NOW},
        ],
        "free_bytes": 6 << 30, "size_bytes": 10 << 30, "volume_count": 2, "promised_bytes": 20 << 30,
        "created_at": NOW, "updated_at": NOW, "revision": 50,
    }  # fmt: skip
    return json.loads(Pool.model_validate(data | changes).model_dump_json())  # type: ignore[no-any-return]


def volume(**changes: Any) -> dict[str, Any]:
    data = {
        "id": VOLUME_ID, "name": "data", "description": "", "labels": {}, "state": "attached", "task": None,
        "problem": None, "pool": "fast", "pool_id": POOL_ID, "size_bytes": 10 << 30, "used_bytes": 3 << 30,
        "qos": {"iops": 500}, "backing_digest": None, "source_volume_id": None, "source_snapshot_id": None,
        "vm": "web-1", "vm_id": VM_ID, "with_vm": False, "node": "node-1", "node_id": NODE_ID, "created_at": NOW,
        "updated_at": NOW, "revision": 60,
    }  # fmt: skip
    return json.loads(Volume.model_validate(data | changes).model_dump_json())  # type: ignore[no-any-return]


def image(**changes: Any) -> dict[str, Any]:
    data = {
        "id": IMAGE_ID, "name": "debian-12", "description": "", "labels": {}, "state": "ready", "cmdline": "",
        "files": [
            {"role": "disk", "digest": "ab" * 32, "size_bytes": 300 << 20, "format": "qcow2",
             "virtual_size_bytes": 2 << 30},
        ],
        "created_at": NOW, "updated_at": NOW, "revision": 30,
    }  # fmt: skip
    return json.loads(Image.model_validate(data | changes).model_dump_json())  # type: ignore[no-any-return]


def migration(**changes: Any) -> dict[str, Any]:
    data = {
        "id": MIGRATION_ID, "vm_id": VM_ID, "vm_name": "web-1", "kind": "live", "strategy": "precopy",
        "state": "transferring", "source_node": "node-1", "source_node_id": NODE_ID, "target_node": "node-2",
        "target_node_id": IMAGE_ID, "may_cancel": True, "max_downtime_ms": 100, "bandwidth_bytes_per_s": 0,
        "finish_within_s": 3600, "max_slowdown_percent": 0, "may_pause": False, "never_postcopy": False,
        "transport": "direct",
        "at_rest": False, "priority": 50, "not_before": None, "began_at": NOW,
        "predicted": None, "measured": None, "prediction_error": None, "labels": {},
        "explanation": ["shared storage: disks stay"],
        "steps_begun": ["accept", "send"], "steps_done": ["accept"], "steps_undone": [],
        "progress": {
            "at": NOW, "total_bytes": 512 << 20, "transferred_bytes": 128 << 20, "remaining_bytes": 384 << 20,
            "rate_bytes_per_s": float(64 << 20), "dirty_rate_bytes_per_s": 0.0, "iteration": 1,
            "predicted_end": "2026-11-23T12:00:06Z",
        },
        "figures": {}, "problem": None, "created_at": NOW, "updated_at": NOW, "finished_at": None, "revision": 40,
    }  # fmt: skip
    return json.loads(Migration.model_validate(data | changes).model_dump_json())  # type: ignore[no-any-return]


def network(**changes: Any) -> dict[str, Any]:
    data = {
        "id": NETWORK_ID, "name": "web", "description": "", "labels": {}, "vni": 4096, "ipv4": "10.20.0.0/24",
        "ipv6": "fd20::/64", "gateways": ["10.20.0.1", "fd20::1"], "mode": "nat", "addressing": "managed",
        "mtu": 1450, "dns": ["9.9.9.9"], "created_at": NOW, "updated_at": NOW, "revision": 50,
    }  # fmt: skip
    return json.loads(Network.model_validate(data | changes).model_dump_json())  # type: ignore[no-any-return]


def security_group(**changes: Any) -> dict[str, Any]:
    data = {
        "id": GROUP_ID, "name": "web", "description": "", "labels": {},
        "rules": [
            {"direction": "in", "protocol": "tcp", "port_first": 443, "port_last": 443, "cidr": "", "group": None},
            {"direction": "in", "protocol": "any", "port_first": 0, "port_last": 0, "cidr": "", "group": GROUP_ID},
        ],
        "created_at": NOW, "updated_at": NOW, "revision": 60,
    }  # fmt: skip
    return json.loads(SecurityGroup.model_validate(data | changes).model_dump_json())  # type: ignore[no-any-return]


COMPLETED = {
    "state": "completed",
    "may_cancel": False,
    "finished_at": "2026-11-23T12:00:07Z",
    "steps_done": ["accept", "send", "commit", "take_over", "verify", "release"],
    "figures": {
        "total_ms": 7012.5,
        "downtime_qemu_ms": 12.0,
        "downtime_stopped_ms": 18.4,
        "bytes_transferred": 540 << 20,
        "iterations": 3,
        "rate_bytes_per_s": float(90 << 20),
    },
}


def said(body: Any, status: int = 200, **headers: str) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def refused(error: NovaCronError) -> Response:
    data = {"type": "about:blank", "title": "x", "status": error.status, **error.as_data(), "detail": error.message}
    return Response(msgspec.json.encode(data), error.status, media_type="application/problem+json")


class ControlRoom:
    """Answers by route; keeps what it was asked; an event log that can be cut off and forgotten."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Answerer] = {}
        self.asked: list[Request] = []
        self.bodies: list[bytes] = []
        self.subscribed: list[Subscribe] = []
        self.tokens: list[str | None] = []
        self.reads_bodies = True
        self.refuse_streams_with: NovaCronError | None = None
        self.hang_up_after: list[int] = []
        """For each stream in turn: close it after so many frames; when empty, never."""
        self.farewell: ErrorFrame | None = None
        self._log: list[Event] = []
        self._floor = 0
        self._grown = threading.Condition()
        self.app = Starlette(
            routes=[
                WebSocketRoute("/api/v1/events", self._stream),
                Route("/{path:path}", self._answer, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
            ]
        )

    def on(self, method: str, path: str, *responses: Response | Answerer) -> None:
        """Answer this route with these, one each time; the last one for ever."""
        rest = list(responses)

        async def answer(request: Request) -> Response:
            chosen = rest.pop(0) if len(rest) > 1 else rest[0]
            return chosen if isinstance(chosen, Response) else await chosen(request)

        self.answers[method, f"/api/v1{path}"] = answer

    def happen(self, type_: str, data: dict[str, Any]) -> int:
        """One more event; its number."""
        kind = ObjectType(type_.split(".", maxsplit=1)[0])
        with self._grown:
            seq = (self._log[-1].seq if self._log else 1000) + 1
            self._log.append(Event(seq=seq, type=type_, object_type=kind, object_id=data["id"], object=data))
            self._grown.notify_all()
        return seq

    def forget(self) -> None:
        """Keep no event that has been."""
        with self._grown:
            self._floor = self._log[-1].seq if self._log else 0

    async def _answer(self, request: Request) -> Response:
        self.asked.append(request)
        if self.reads_bodies:
            self.bodies.append(await request.body())
        answer = self.answers.get((request.method, request.url.path))
        return await answer(request) if answer else Response("<html>not here</html>", 404)

    async def _stream(self, websocket: WebSocket) -> None:
        import anyio

        self.tokens.append(websocket.headers.get("authorization"))
        if self.refuse_streams_with:
            await websocket.send_denial_response(refused(self.refuse_streams_with))
            return
        await websocket.accept()
        wanted = msgspec.json.decode(await websocket.receive_text(), type=Subscribe)
        self.subscribed.append(wanted)
        allowed = self.hang_up_after.pop(0) if self.hang_up_after else 1 << 30
        last = self._log[-1].seq if self._log else 1000
        at = last if wanted.after is None else wanted.after
        frames: list[Any] = []
        if at < self._floor:
            frames.append(Resync(seq=self._floor, message="no longer kept"))
            at = self._floor
        frames += [EventFrame(event=event) for event in self._fitting(wanted, at)]
        frames.append(Ready(seq=last))
        at = last
        try:
            while True:
                for frame in frames:
                    if allowed == 0:
                        break
                    await websocket.send_text(msgspec.json.encode(frame).decode())
                    allowed -= 1
                if allowed == 0:
                    if self.farewell:
                        await websocket.send_text(msgspec.json.encode(self.farewell).decode())
                    await websocket.close(1012)
                    return
                after = at
                await anyio.to_thread.run_sync(self._wait_beyond, after)
                frames = [EventFrame(event=event) for event in self._fitting(wanted, after)]
                at = self._log[-1].seq if self._log else after
        except (WebSocketDisconnect, RuntimeError):
            return

    def _wait_beyond(self, seq: int) -> None:
        with self._grown:
            self._grown.wait_for(lambda: bool(self._log) and self._log[-1].seq > seq, timeout=0.2)

    def _fitting(self, wanted: Subscribe, after: int) -> list[Event]:
        return [
            event
            for event in self._log
            if event.seq > after
            and (not wanted.ids or event.object_id in wanted.ids)
            and (not wanted.object_types or event.object_type in wanted.object_types)
        ]


def at(second: float) -> str:
    return (datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC) + datetime.timedelta(seconds=second)).isoformat()
