"""The verbs of a move that goes on in post-copy: this node sends, or fetches, what is missing of a machine's memory."""

from __future__ import annotations

from collections.abc import Callable

from novacron.agent.drivers.base import Driver
from novacron.agent.drivers.handoff import Reception
from novacron.agent.ledger import Ledger, Role
from novacron.errors import NotFound
from novacron.model.migration import Progress
from novacron.wire import agent as wire
from novacron.wire import moving

Announce = Callable[[wire.MigrationProgress], None]
"""Tells the server how far a transfer is."""


class Postcopy:
    """Verbs take their wire struct and answer its result. All are idempotent."""

    def __init__(self, ledger: Ledger, driver: Driver, *, host: str, announce: Announce) -> None:
        self._ledger = ledger
        self._driver = driver
        self._host = host
        self._announce = announce

    async def open_postcopy(self, args: moving.OpenPostcopy) -> None:
        """(source) The ownership has moved: have the target run with what it has.

        :raise MigrationFailed: it cannot have begun to run there; it stands still here.
        """
        self._check_leaving(args)
        await self._driver.open_postcopy(args.vm_id, args.migration_id)

    async def fetch_rest(self, args: moving.FetchRest) -> moving.RestFetched:
        """(source) :raise MigrationFailed: the rest can never be fetched; the machine is lost."""
        self._check_leaving(args)

        def tell(progress: Progress) -> None:
            self._announce(wire.MigrationProgress(migration_id=args.migration_id, progress=progress))

        to = Reception(host=args.to.host, port=args.to.port, key_hex=args.to.key_hex) if args.to else None
        rest = await self._driver.fetch_rest(args.vm_id, args.migration_id, tell, to)
        return moving.RestFetched(done=rest.done, why=rest.why)

    async def reopen(self, args: moving.Reopen) -> moving.ReceptionAt:
        """(target) :raise StateConflict: nothing of its memory is missing."""
        holding = self._ledger.check(args.vm_id, args.generation)
        if holding is None or holding.migration_id != args.migration_id:
            raise NotFound(f"migration {args.migration_id} brought no machine {args.vm_id} here")
        reception = await self._driver.reopen(args.vm_id, args.migration_id, self._host)
        return moving.ReceptionAt(host=reception.host, port=reception.port, key_hex=reception.key_hex)

    def _check_leaving(self, args: moving.OpenPostcopy | moving.FetchRest) -> None:
        # The floor is not raised here: that is a write to disk, and a guest stands still.
        holding = self._ledger.check(args.vm_id, args.generation)
        if holding is None or holding.role is not Role.LEAVING or holding.migration_id != args.migration_id:
            raise NotFound(f"machine {args.vm_id} does not leave this node by migration {args.migration_id}")
