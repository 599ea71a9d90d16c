"""A volume as the API shows it: the shape of wire.rest.volumes.Volume."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.control.encoded import Encoded
from novacron.control.store.kinds import NODES, POOLS, VMS, VOLUMES, Kind
from novacron.control.store.records import Records
from novacron.model.volume import Volume, state_of

_all_of = msgspec.structs.asdict


class VolumeView:
    """`data` builds the object, `encoded` its bytes, once for each revision."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.encoded = Encoded(records, VOLUMES, self.data, self._names)

    def data(self, volume: Volume, revision: int) -> dict[str, Any]:
        return {
            "id": volume.id,
            "name": volume.name,
            "description": volume.description,
            "labels": volume.labels,
            "state": state_of(volume),
            "task": volume.task,
            "problem": _all_of(volume.problem) if volume.problem else None,
            "pool": self._records.name(POOLS, volume.pool_id),
            "pool_id": volume.pool_id,
            "size_bytes": volume.size_bytes,
            "used_bytes": volume.used_bytes,
            "qos": _all_of(volume.qos),
            "backing_digest": volume.backing_digest or None,
            "source_volume_id": volume.source_volume_id or None,
            "source_snapshot_id": volume.source_snapshot_id or None,
            "vm": self._records.name(VMS, volume.vm_id) or None,
            "vm_id": volume.vm_id or None,
            "with_vm": volume.with_vm,
            "node": self._records.name(NODES, volume.node_id) or None,
            "node_id": volume.node_id or None,
            "created_at": volume.created_at,
            "updated_at": volume.updated_at,
            "revision": revision,
        }

    def _names(self, volume: Volume) -> str:
        named: tuple[tuple[Kind[Any], str], ...] = (
            (POOLS, volume.pool_id),
            (VMS, volume.vm_id),
            (NODES, volume.node_id),
        )
        return " ".join(self._records.name(kind, record_id) for kind, record_id in named)
