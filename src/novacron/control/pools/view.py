"""A storage pool as the API shows it: the shape of wire.rest.pools.Pool."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.control.pools.quota import promised_bytes
from novacron.control.store.kinds import NODES, VOLUMES
from novacron.control.store.records import Records
from novacron.control.store.shelf import Stored
from novacron.model.pool import Pool, Reach

_all_of = msgspec.structs.asdict
_encode = msgspec.json.Encoder().encode


class PoolView:
    """`data` builds the object, `encoded` its bytes: anew each time, for it shows what other records say."""

    def __init__(self, records: Records, default_id: str) -> None:
        self._records = records
        self._default_id = default_id

    def encoded(self, pool: Stored[Pool]) -> bytes:
        return _encode(self.data(pool.record, pool.modified))

    def data(self, pool: Pool, revision: int) -> dict[str, Any]:
        found = [reach for reach in pool.reach.values() if reach.available]
        return {
            "id": pool.id,
            "name": pool.name,
            "description": pool.description,
            "labels": pool.labels,
            "driver": pool.driver,
            "options": pool.options,
            "shared": pool.shared,
            "is_default": pool.id == self._default_id,
            "image_cache_bytes": pool.image_cache_bytes,
            "quota_bytes": pool.quota_bytes,
            "reach": sorted((self._reach(*item) for item in pool.reach.items()), key=lambda one: str(one["node"])),
            **_space(pool, found),
            "volume_count": sum(one.record.pool_id == pool.id for one in self._records.all(VOLUMES)),
            "promised_bytes": promised_bytes(self._records, pool.id),
            "created_at": pool.created_at,
            "updated_at": pool.updated_at,
            "revision": revision,
        }

    def _reach(self, node_id: str, reach: Reach) -> dict[str, Any]:
        return {"node": self._records.name(NODES, node_id), "node_id": node_id, **_all_of(reach)}


def _space(pool: Pool, found: list[Reach]) -> dict[str, int]:
    """Of a shared pool what was seen last; else what all nodes have together."""
    if pool.shared and found:
        found = [max(found, key=lambda reach: reach.checked_at)]
    return {
        "free_bytes": sum(reach.free_bytes for reach in found),
        "size_bytes": sum(reach.size_bytes for reach in found),
    }
