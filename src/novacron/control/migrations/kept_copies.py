"""Has copies of disks deleted that a move left at its source, once a person says that they are of no use."""

from __future__ import annotations

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.link import Agents
from novacron.control.once import Change, Once, Outcome
from novacron.control.pools.reach import spec_for
from novacron.control.store.kinds import MIGRATIONS, NODES, POOLS, VMS, VOLUMES
from novacron.control.store.records import Records
from novacron.errors import NodeUnreachable, Reason, StateConflict
from novacron.model.kept_copies import discarded, to_discard
from novacron.model.migration import DiskMove, Migration
from novacron.model.node import Node
from novacron.wire.moving import DiscardCopies, PlacedVolume

DEADLINE_S = 60.0


class KeptCopies:
    """Asks the source at once: its answer is the request's, and what was done is on the migration's record."""

    def __init__(self, records: Records, agents: Agents, clock: Clock) -> None:
        self._records = records
        self._agents = agents
        self._clock = clock

    async def discard(self, ref: str, by: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """Delete them. After a failure some may be left, and the record does not say that they are gone: ask again.

        :raise StateConflict: there are none, or a disk is there again, or what they lie in is gone.
        :raise NodeUnreachable: the source is away. :raise DeadlineExceeded: it did not answer.
        :raise NotFound, PreconditionFailed
        """
        stored = self._records.find(MIGRATIONS, ref)
        check_match(held, stored)
        migration = stored.record
        moves = self._moves(migration)
        source = self._source(migration)
        verb = self._order(migration, moves)
        if not self._agents.is_connected(source.id):
            raise self._away(source)
        await self._agents.call(source.id, verb, type(None), deadline_s=DEADLINE_S)

        def change(now: Migration) -> Migration | None:
            gone = now.copies_discarded_at is not None
            return None if gone else discarded(now, by, source.name, self._clock.wall())

        return await Change(self._records, MIGRATIONS, migration.id, held, once).write(change)

    def _moves(self, migration: Migration) -> tuple[DiskMove, ...]:
        found = (self._records.get(VOLUMES, move.volume_id) for move in migration.disks)
        volumes = {stored.record.id: stored.record for stored in found if stored is not None}
        return to_discard(migration, volumes, self._records.name(NODES, migration.source_node))

    def _source(self, migration: Migration) -> Node:
        stored = self._records.get(NODES, migration.source_node)
        if stored is None:
            why = "its source was forgotten, and is no node here any more"
            raise _refused(migration, "node.gone", why, "delete them by hand, where the verdict says")
        return stored.record

    def _order(self, migration: Migration, moves: tuple[DiskMove, ...]) -> DiscardCopies:
        vm = self._records.get(VMS, migration.vm_id)
        return DiscardCopies(
            vm_id=migration.vm_id,
            generation=vm.record.generation if vm else migration.generation + 1,  # as its move left it
            migration_id=migration.id,
            copies=tuple(self._placed(migration, move) for move in moves),
        )

    def _placed(self, migration: Migration, move: DiskMove) -> PlacedVolume:
        pool = self._records.get(POOLS, move.from_pool_id)
        if pool is None:
            why = f"the pool they lie in ({move.from_pool_id}) is not known any more"
            raise _refused(migration, "pool.gone", why, "delete them by hand, where the verdict says")
        return PlacedVolume(pool=spec_for(self._records, pool.record), volume_id=move.volume_id)

    def _away(self, source: Node) -> NodeUnreachable:
        words = f"copies on {source.name} cannot be deleted: the node is away"
        remedy = f"ask again when it is there: novacron node show {source.name}"
        return NodeUnreachable(words, [Reason("node.away", "it has no line", subject=source.name, remedy=remedy)])


def _refused(migration: Migration, code: str, why: str, remedy: str) -> StateConflict:
    return StateConflict(
        f"cannot delete copies of disks of migration {migration.id}: {why}",
        [Reason(code, why, subject=migration.id, remedy=remedy)],
    )
