"""Migrations and their policies as the API shows them: the shapes of wire.rest."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.control.encoded import Encoded
from novacron.control.store.kinds import MIGRATIONS, NODES, POLICIES, POOLS
from novacron.control.store.records import Records
from novacron.model.kept_copies import keeps_copies
from novacron.model.migration import DiskMove, Figures, Migration, is_final, prediction_error, waits
from novacron.model.migration_steps import may_cancel
from novacron.model.policy import Policy
from novacron.model.verdict import Verdict, outcome_of

_all_of = msgspec.structs.asdict


def disk_view(records: Records, move: DiskMove) -> dict[str, Any]:
    """The shape of wire.rest.migrations.DiskMoveOut."""
    from_pool, to_pool = records.get(POOLS, move.from_pool_id), records.get(POOLS, move.to_pool_id)
    return {
        "volume_id": move.volume_id,
        "size_bytes": move.size_bytes,
        "used_bytes": move.used_bytes,
        "from_pool": from_pool.record.name if from_pool else "",
        "from_pool_id": move.from_pool_id,
        "to_pool": to_pool.record.name if to_pool else "",
        "to_pool_id": move.to_pool_id,
    }


class MigrationView:
    """`data` builds the object, `encoded` its bytes, once for each revision."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.encoded = Encoded(records, MIGRATIONS, self.data, self._node_names)

    def data(self, migration: Migration, revision: int) -> dict[str, Any]:
        return {
            "id": migration.id,
            "vm_id": migration.vm_id,
            "vm_name": migration.vm_name,
            "kind": migration.kind,
            "strategy": migration.strategy,
            "state": migration.state,
            "source_node": self._records.name(NODES, migration.source_node),
            "source_node_id": migration.source_node,
            "target_node": self._records.name(NODES, migration.target_node),
            "target_node_id": migration.target_node,
            "at_rest": migration.at_rest,
            "paused": migration.paused,
            "disks": [disk_view(self._records, move) for move in migration.disks],
            "belongings": migration.belongings,
            "priority": migration.priority,
            "not_before": migration.not_before,
            "holds_vm": migration.holds and not is_final(migration),
            "held_up": _all_of(migration.held_up) if migration.held_up and waits(migration) else None,
            "began_at": migration.began_at,
            "may_cancel": may_cancel(migration),
            **_all_of(migration.goals),
            "labels": migration.labels,
            "explanation": migration.explanation,
            "steps_begun": migration.began,
            "steps_done": migration.did,
            "steps_undone": migration.undone,
            "progress": _all_of(migration.progress) if migration.progress else None,
            "predicted": msgspec.to_builtins(migration.predicted),
            "measured": msgspec.to_builtins(migration.measured),
            "figures": self._figures(migration.figures),
            "verdict": self._verdict(migration.verdict),
            "kept_copies": self._kept_copies(migration),
            "prediction_error": msgspec.to_builtins(prediction_error(migration)),
            "problem": _all_of(migration.problem) if migration.problem else None,
            "created_at": migration.created_at,
            "updated_at": migration.updated_at,
            "finished_at": migration.finished_at,
            "revision": revision,
        }

    def _verdict(self, verdict: Verdict | None) -> dict[str, Any] | None:
        if verdict is None:
            return None
        checks = [_all_of(check) for check in verdict.checks]
        return _all_of(verdict) | {"outcome": outcome_of(verdict.checks), "checks": checks}

    def _kept_copies(self, migration: Migration) -> dict[str, Any] | None:
        if not keeps_copies(migration):
            return None
        return {
            "node": self._records.name(NODES, migration.source_node),
            "node_id": migration.source_node,
            "volume_ids": [move.volume_id for move in migration.disks],
            "discarded_at": migration.copies_discarded_at,
            "discarded_by": migration.copies_discarded_by or None,
        }

    def _figures(self, figures: Figures) -> dict[str, Any]:
        checked_by = figures.network_checked_by
        return _all_of(figures) | {"network_checked_by": self._records.name(NODES, checked_by) if checked_by else None}

    def _node_names(self, migration: Migration) -> str:
        pools = (disk_view(self._records, move) for move in migration.disks)
        names = (name for one in pools for name in (one["from_pool"], one["to_pool"]))
        nodes = (self._records.name(NODES, one) for one in (migration.source_node, migration.target_node))
        return " ".join([*nodes, *names])


class PolicyView:
    """`data` builds the object, `encoded` its bytes, once for each revision."""

    def __init__(self, records: Records) -> None:
        self.encoded = Encoded(records, POLICIES, self.data)

    def data(self, policy: Policy, revision: int) -> dict[str, Any]:
        windows = [_all_of(one) for one in policy.windows]
        return {**_all_of(policy), "goals": _all_of(policy.goals), "windows": windows, "revision": revision}
