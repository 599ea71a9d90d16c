"""Bulk migrations and their plans as the API shows them: the shapes of wire.rest.bulk_migrations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from novacron.control.bulk_migrations.service import Loss
from novacron.control.encoded import Encoded
from novacron.control.store.kinds import BULK_MIGRATIONS, NODES, POLICIES
from novacron.control.store.records import Records
from novacron.model.bulk_migration import BulkMigration, Entry, EntryState, Forecast
from novacron.wire.rest.bulk_migrations import BulkMigrationCreate

_all_of = msgspec.structs.asdict


class BulkMigrationView:
    """`whole` builds the object, `data` the same without its entries, for lists and events: there may be a thousand.

    `encoded` and `brief` are their bytes, once for each revision; `plan` and `loss` are made anew.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self.encoded = Encoded(records, BULK_MIGRATIONS, self.whole, self._names)
        self.brief = Encoded(records, BULK_MIGRATIONS, self.data, self._names)

    def whole(self, bulk: BulkMigration, revision: int) -> dict[str, Any]:
        return {**self.data(bulk, revision), "entries": [self._entry(entry) for entry in bulk.entries]}

    def data(self, bulk: BulkMigration, revision: int) -> dict[str, Any]:
        policy = self._records.get(POLICIES, bulk.policy_id)
        return {
            "id": bulk.id,
            "state": bulk.state,
            "purpose": bulk.purpose,
            "node": self._name(bulk.selection.node_id),
            "target_node": self._name(bulk.target_node),
            "policy": policy.record.name if policy else bulk.policy_id or None,
            "goals": _all_of(bulk.goals),
            "max_concurrent": bulk.limits.max_concurrent,
            "max_per_node": bulk.limits.per_node,
            "max_per_link": bulk.limits.per_link,
            "bandwidth_budget_bytes_per_s": bulk.limits.bandwidth_bytes_per_s,
            "max_attempts": bulk.limits.max_attempts,
            "forecast": self._forecast(bulk.forecast),
            "counts": Counter(entry.state.value for entry in bulk.entries),
            "entries": None,
            "replans": bulk.replans,
            "explanation": bulk.explanation,
            "labels": bulk.labels,
            "created_at": bulk.created_at,
            "updated_at": bulk.updated_at,
            "finished_at": bulk.finished_at,
            "revision": revision,
        }

    def plan(self, asked: BulkMigrationCreate, bulk: BulkMigration) -> bytes:
        """The plan's bytes. asked: what it was made for, so that what it says can be begun as it is."""
        targets = {entry.vm_id: entry.target_node for entry in bulk.entries if entry.target_node and entry.wave}
        said = asked.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        return msgspec.json.encode(
            {
                "purpose": bulk.purpose,
                "node": self._name(bulk.selection.node_id),
                "forecast": self._forecast(bulk.forecast),
                "stays": sum(entry.state is EntryState.STAYS for entry in bulk.entries),
                "entries": [self._entry(entry) for entry in bulk.entries],
                "start": {**said, "targets": targets},
            }
        )

    def loss(self, loss: Loss) -> bytes:
        """What the loss of a node would mean, as bytes."""
        return msgspec.json.encode(
            {
                "node": self._name(loss.node_id),
                "node_id": loss.node_id,
                "restarts": [
                    {
                        "vm": one.vm_name,
                        "vm_id": one.vm_id,
                        "priority": one.priority,
                        "memory_mib": one.memory_mib,
                        "target_node": self._name(one.target_id),
                        "target_node_id": one.target_id or None,
                        "reasons": [_all_of(reason) for reason in one.reasons],
                    }
                    for one in loss.restarts
                ],
                "no_room": sum(not one.target_id for one in loss.restarts),
                "at_rest": loss.at_rest,
            }
        )

    def _forecast(self, forecast: Forecast) -> dict[str, Any]:
        busiest = [{**_all_of(one), "nodes": [self._name(node) for node in one.nodes]} for one in forecast.busiest]
        return {**_all_of(forecast), "busiest": busiest, "held_back_s": self._told(forecast.held_back_s)}

    def _told(self, held_back_s: dict[str, float]) -> dict[str, float]:
        """By code, and by the names of the nodes it is about."""
        told = {}
        for key, span_s in held_back_s.items():
            code, *about = key.split()
            told[" ".join([code, *(self._name(one) or one for one in about)])] = round(span_s, 3)
        return told

    def _entry(self, entry: Entry) -> dict[str, Any]:
        return {
            "vm": entry.vm_name,
            "vm_id": entry.vm_id,
            "state": entry.state,
            "priority": entry.priority,
            "source_node": self._name(entry.source_node) or "",
            "target_node": self._name(entry.target_node),
            "target_node_id": entry.target_node or None,
            "wave": entry.wave,
            "starts_at_s": entry.starts_at_s,
            "takes_s": entry.takes_s,
            "migration_ids": entry.migration_ids,
            "reasons": [_all_of(reason) for reason in entry.reasons],
            "finished_at": entry.finished_at,
        }

    def _name(self, node_id: str) -> str | None:
        return self._records.name(NODES, node_id) or None

    def _names(self, bulk: BulkMigration) -> str:
        nodes = {one for entry in bulk.entries for one in (entry.source_node, entry.target_node)}
        return " ".join(str(self._name(one)) for one in sorted({*nodes, bulk.selection.node_id, bulk.target_node}))
