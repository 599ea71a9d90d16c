"""Snapshots and schedules as the API shows them: the shapes of wire.rest.snapshots."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.control.encoded import Encoded
from novacron.control.snapshots.timing import next_at
from novacron.control.store.kinds import SCHEDULES, SNAPSHOTS, VMS
from novacron.control.store.records import Records
from novacron.model.snapshot import Schedule, Snapshot

_all_of = msgspec.structs.asdict


class SnapshotView:
    """`data` builds the object, `encoded` its bytes, once for each revision."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.encoded = Encoded(records, SNAPSHOTS, self.data, self._vm)

    def data(self, snapshot: Snapshot, revision: int) -> dict[str, Any]:
        stored = self._records.get(VMS, snapshot.vm_id)
        return {
            "id": snapshot.id,
            "name": snapshot.name,
            "vm_id": snapshot.vm_id,
            "vm_name": stored.record.name if stored else snapshot.vm_id,
            "parent_id": snapshot.parent_id or None,
            "current": stored is not None and stored.record.snapshot_id == snapshot.id,
            "state": snapshot.state,
            "consistency": snapshot.consistency,
            "description": snapshot.description,
            "labels": snapshot.labels,
            "volumes": snapshot.volumes,
            "vcpus": snapshot.spec.vcpus,
            "memory_mib": snapshot.spec.memory_mib,
            "size_bytes": snapshot.size_bytes,
            "stood_still_ms": snapshot.stood_still_ms,
            "schedule_id": snapshot.schedule_id or None,
            "image_id": snapshot.export.image_id if snapshot.export else None,
            "problem": _all_of(snapshot.problem) if snapshot.problem else None,
            "created_at": snapshot.created_at,
            "updated_at": snapshot.updated_at,
            "revision": revision,
        }

    def _vm(self, snapshot: Snapshot) -> str:
        stored = self._records.get(VMS, snapshot.vm_id)
        return f"{stored.record.name} {stored.record.snapshot_id}" if stored else ""


class ScheduleView:
    """As SnapshotView, of schedules."""

    def __init__(self, records: Records) -> None:
        self.encoded = Encoded(records, SCHEDULES, self.data)

    def data(self, schedule: Schedule, revision: int) -> dict[str, Any]:
        return _all_of(schedule) | {"next_at": next_at(schedule), "revision": revision}
