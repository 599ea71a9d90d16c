"""Decides what requests about storage pools mean and records it."""

from __future__ import annotations

import msgspec

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.once import Change, Once, Outcome
from novacron.control.pools import options
from novacron.control.room import Room
from novacron.control.store.kinds import POOLS, VMS, VOLUMES
from novacron.control.store.records import WRITE_TRIES, Records, Write, create, remove
from novacron.control.store.shelf import Stored
from novacron.errors import CompareFailed, Conflict, InvalidInput, NameTaken, Reason
from novacron.model.pool import SHARED_DRIVERS, Pool, PoolDriver
from novacron.model.volume import lies_in
from novacron.wire.rest.pools import PoolCreate, PoolUpdate

DEFAULT_NAME = "default"
MAX_NAMED = 10  # users named in a refusal


async def ensure_default(records: Records, clock: Clock, pool_id: str) -> None:
    """Record the pool that server and nodes share from the start, if it is not recorded yet.

    When another has its name already, it is called by its id as well.
    """
    if records.get(POOLS, pool_id) is not None:
        return
    now = clock.wall()
    pool = Pool(
        id=pool_id,
        name=DEFAULT_NAME,
        driver=PoolDriver.DIRECTORY,
        shared=True,
        description="the directory server and nodes share from the start",
        created_at=now,
        updated_at=now,
    )
    try:
        await records.create(POOLS, pool)
    except NameTaken:
        await records.create(POOLS, msgspec.structs.replace(pool, name=f"{DEFAULT_NAME}-{pool_id}"))
    except CompareFailed:  # another server, started at the same time, was quicker
        await records.refresh()


class PoolService:
    """Requests about pools, answered from the records alone; what nodes find is the prober's to say."""

    def __init__(self, records: Records, room: Room, clock: Clock, default_id: str) -> None:
        self._records = records
        self._room = room
        self._clock = clock
        self._default_id = default_id

    async def create(self, asked: PoolCreate, once: Once) -> Outcome:
        """Record a pool; whether nodes reach it is seen within seconds. :raise InvalidInput, NameTaken"""
        options.check(asked.driver, asked.options)
        shared = asked.driver in SHARED_DRIVERS if asked.shared is None else asked.shared
        if shared and asked.driver is PoolDriver.DIRECTORY and "path" not in asked.options:
            remedy = "give the path of what nodes share; without one, and not shared, it is each node's own directory"
            raise InvalidInput.field("options.path", "is missing", remedy)
        now = self._clock.wall()
        pool = Pool(
            id=self._records.new_id(),
            name=asked.name,
            driver=asked.driver,
            options=asked.options,
            shared=shared,
            labels=asked.labels,
            description=asked.description,
            image_cache_bytes=asked.image_cache_bytes,
            quota_bytes=asked.quota_bytes,
            created_at=now,
            updated_at=now,
        )
        try:
            revision = await self._records.commit(create(POOLS, pool), *once.note(pool, 201))
        except CompareFailed as lost:
            await self._records.refuse_taken_name(POOLS, None, pool, lost)
            raise
        return Outcome(Stored(pool, revision), 201)

    async def update(self, ref: str, asked: PoolUpdate, held: frozenset[str] | None) -> Outcome:
        """Change what was named; where it lies may change only while nothing lies in it. A quota may be any.

        :raise InvalidInput: an option is wrong. :raise Conflict: volumes lie in it.
        :raise NotFound, NameTaken, PreconditionFailed
        """
        named = asked.model_dump(exclude_none=True)

        def change(pool: Pool) -> Pool:
            new = msgspec.structs.replace(pool, **named)
            if new.options != pool.options:
                options.check(pool.driver, new.options)
                self._check_movable(pool, new)
                new = msgspec.structs.replace(new, reach={})
            return pool if new == pool else msgspec.structs.replace(new, updated_at=self._clock.wall())

        counts = asked.options is not None or asked.quota_bytes is not None
        beside = self._room.ticket if counts else _nothing
        async with self._room.turn():  # no volume is being promised in it meanwhile
            return await Change(self._records, POOLS, ref, held, beside=beside).write(change)

    async def delete(self, ref: str, held: frozenset[str] | None) -> None:
        """Forget a pool in which nothing lies. What is in it on the nodes is not touched.

        :raise Conflict: it is the default pool, or volumes or VMs use it; a reason for each.
        :raise NotFound, PreconditionFailed
        """
        for _ in range(WRITE_TRIES):
            async with self._room.turn():
                ticket = await self._room.ticket()
                stored = self._records.find(POOLS, ref)
                check_match(held, stored)
                self._check_deletable(stored.record)
                try:
                    await self._records.commit(remove(POOLS, stored), ticket)
                except CompareFailed:
                    await self._records.refresh()
                    continue
                return
        raise CompareFailed(f"pool {ref!r} is being changed by others: try again")

    def _check_movable(self, pool: Pool, new: Pool) -> None:
        if pool.id == self._default_id:
            reason = Reason("pool.default", "its directory is told to each agent as it starts", pool.name)
            raise Conflict(f"cannot change the options of pool {pool.name}: it is the default pool", [reason])
        if not options.only_adds_units(pool.options, new.options):
            self._check_empty(pool, "change the options of")

    def _check_deletable(self, pool: Pool) -> None:
        if pool.id == self._default_id:
            reason = Reason("pool.default", "images and disks without a pool of their own lie in it", pool.name)
            raise Conflict(f"cannot delete pool {pool.name}: it is the default pool", [reason])
        self._check_empty(pool, "delete")

    def _check_empty(self, pool: Pool, verb: str) -> None:
        users = [
            Reason("pool.in_use", "this volume lies in it", volume.record.name, "delete the volume first")
            for volume in self._records.all(VOLUMES)
            if lies_in(volume.record, pool.id)
        ] + [
            Reason("pool.in_use", "a disk of this VM lies in it", vm.record.name, "detach the disk or delete the VM")
            for vm in self._records.all(VMS)
            if any(disk.pool_id == pool.id for disk in vm.record.spec.disks)
        ]
        if users:
            raise Conflict(f"cannot {verb} pool {pool.name}: it is in use", users[:MAX_NAMED])


async def _nothing() -> Write:
    return Write((), ())
