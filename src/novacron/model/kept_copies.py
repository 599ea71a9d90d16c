"""Copies of disks that stayed at a move's source, which the VM has left: why, and which may be deleted. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping

import msgspec

from novacron.errors import Reason, StateConflict
from novacron.model.migration import DiskMove, Migration, MigrationState, is_final, is_here
from novacron.model.migration_steps import is_committed
from novacron.model.verdict import DISKS, failures
from novacron.model.volume import Place, Volume, places


def keeps_copies(migration: Migration) -> bool:
    """Whether the source's copies of its disks are not to be deleted: the target's differ from them, or it failed once
    the VM was the target's and nobody has seen it live there.
    """
    checks = migration.verdict.checks if migration.verdict else ()
    differs = any(check.name == DISKS for check in failures(checks))
    return differs or _failed_there(migration)


def _failed_there(migration: Migration) -> bool:
    left = bool(migration.disks) and not is_here(migration)
    return left and migration.state is MigrationState.FAILED and is_committed(migration)


def to_discard(migration: Migration, volumes: Mapping[str, Volume], source: str) -> tuple[DiskMove, ...]:
    """The disks whose copies at the source may go. volumes: by id, those that there are; source: that node's name.

    :raise StateConflict: there are none, or it is not certain that nothing of them is of use; says why.
    """
    if migration.copies_discarded_at is not None:
        when = f"{migration.copies_discarded_at:%Y-%m-%d %H:%M} UTC"
        raise _refused(migration, "copies.discarded", f"{migration.copies_discarded_by} had them deleted at {when}")
    if not keeps_copies(migration):
        raise _refused(
            migration, "copies.none", "it kept none: no disk was found to differ, nor did it fail past its commit"
        )
    if not is_final(migration):
        raise _refused(migration, "copies.in_use", "it is under way", "wait until it has ended")
    back = [move for move in migration.disks if _is_back(move, migration.source_node, volumes.get(move.volume_id))]
    if back:
        names = ", ".join(volumes[move.volume_id].name for move in back)
        why = f"what lies on {source} now is the disk itself: {names} moved back, or is about to"
        raise _refused(migration, "copies.in_use", why, f"nothing of this migration is left to delete on {source}")
    return migration.disks


def kept_units(migrations: Iterable[Migration], pool_id: str) -> dict[str, str]:
    """By volume, the units of the pool in which such copies lie: nobody else gets them before they are deleted."""
    keeping = (one for one in migrations if one.disks and one.copies_discarded_at is None and keeps_copies(one))
    moves = (move for one in keeping for move in one.disks)
    return {move.volume_id: move.from_unit for move in moves if move.from_pool_id == pool_id and move.from_unit}


def discarded(migration: Migration, by: str, source: str, now: datetime.datetime) -> Migration:
    """The record once they are deleted at the source."""
    return msgspec.structs.replace(
        migration,
        copies_discarded_at=now,
        copies_discarded_by=by,
        explanation=(*migration.explanation, f"copies on {source} deleted at the wish of {by}"),
        updated_at=now,
    )


def _is_back(move: DiskMove, source_node: str, volume: Volume | None) -> bool:
    """Whether the volume, or a copy of it that is being made, lies where the move took it from."""
    return volume is not None and any(_is_at(place, move.from_pool_id, source_node) for place in places(volume))


def _is_at(place: Place, pool_id: str, node_id: str) -> bool:
    return place.pool_id == pool_id and place.node_id in ("", node_id)  # in a shared pool it is on every node


def _refused(migration: Migration, code: str, why: str, remedy: str = "") -> StateConflict:
    return StateConflict(
        f"cannot delete copies of disks of migration {migration.id}: {why}",
        [Reason(code, why, subject=migration.id, remedy=remedy)],
    )
