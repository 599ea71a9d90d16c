"""Migration rehearsals as the API shows them: the shape of wire.rest.rehearsals."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.control.encoded import Encoded
from novacron.control.store.kinds import NODES, REHEARSALS
from novacron.control.store.records import Records
from novacron.model.rehearsal import Rehearsal, may_cancel
from novacron.model.verdict import Verdict, outcome_of

_all_of = msgspec.structs.asdict


class RehearsalView:
    """`data` builds the object, `encoded` its bytes, once for each revision."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.encoded = Encoded(records, REHEARSALS, self.data, self._node_names)

    def data(self, rehearsal: Rehearsal, revision: int) -> dict[str, Any]:
        return {
            "id": rehearsal.id,
            "vm_id": rehearsal.vm_id,
            "vm_name": rehearsal.vm_name,
            "state": rehearsal.state,
            "source_node": self._records.name(NODES, rehearsal.source_node),
            "source_node_id": rehearsal.source_node,
            "target_node": self._records.name(NODES, rehearsal.target_node),
            "target_node_id": rehearsal.target_node,
            "copy_id": rehearsal.copy_id,
            "copy_name": rehearsal.copy_name,
            "network_id": rehearsal.network_id or None,
            "keep_for_s": rehearsal.keep_for_s,
            "boot_within_s": rehearsal.boot_within_s,
            "watch_for_s": rehearsal.watch_for_s,
            "bandwidth_bytes_per_s": rehearsal.bandwidth_bytes_per_s,
            "may_cancel": may_cancel(rehearsal),
            "labels": rehearsal.labels,
            "explanation": rehearsal.explanation,
            "figures": _all_of(rehearsal.figures),
            "verdict": _verdict(rehearsal.verdict),
            "problem": _all_of(rehearsal.problem) if rehearsal.problem else None,
            "created_at": rehearsal.created_at,
            "updated_at": rehearsal.updated_at,
            "booted_at": rehearsal.booted_at,
            "kept_until": rehearsal.kept_until,
            "finished_at": rehearsal.finished_at,
            "revision": revision,
        }

    def _node_names(self, rehearsal: Rehearsal) -> str:
        return f"{self._records.name(NODES, rehearsal.source_node)} {self._records.name(NODES, rehearsal.target_node)}"


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    checks = [_all_of(check) for check in verdict.checks]
    return _all_of(verdict) | {"outcome": outcome_of(verdict.checks), "checks": checks}
