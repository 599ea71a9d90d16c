"""The verbs of a move that goes on in post-copy: this node sends, or fetches, what is missing of a machine's memory."""

from __future__ import annotations

from collections.abc import Callable

from novacron.agent.drivers.base import Driver
from novacron.agent.ledger import Ledger, Role
from novacron.agent.proxies import Proxies
from novacron.errors import NotFound
from novacron.model.machine import MachineSpec
from novacron.model.migration import Progress
from novacron.wire import agent as wire

Announce = Callable[[wire.MigrationProgress], None]
"""Tells the server how far a transfer is."""


class Postcopy:
    """Verbs take their wire struct and answer its result. All are idempotent."""

    def __init__(self, ledger: Ledger, driver: Driver, proxies: Proxies, *, announce: Announce) -> None:
        self._ledger = ledger
        self._driver = driver
        self._proxies = proxies
        self._announce = announce

    async def open_postcopy(self, args: wire.OpenPostcopy) -> None:
        """(source) The ownership has moved: have the target run with what it has.

        :raise MigrationFailed: it cannot have begun to run there; it stands still here.
        """
        self._check_leaving(args)
        await self._driver.open_postcopy(args.vm_id, args.migration_id)

    async def fetch_rest(self, args: wire.FetchRest) -> wire.RestFetched:
        """(source) :raise MigrationFailed: the rest can never be fetched; the machine is lost."""
        spec = self._check_leaving(args)

        def tell(progress: Progress) -> None:
            self._announce(wire.MigrationProgress(migration_id=args.migration_id, progress=progress))

        to = await self._proxies.again(args, spec)
        rest = await self._driver.fetch_rest(args.vm_id, args.migration_id, tell, to)
        return wire.RestFetched(done=rest.done, why=rest.why)

    async def reopen(self, args: wire.Reopen) -> wire.ReceptionAt:
        """(target) :raise StateConflict: nothing of its memory is missing."""
        holding = self._ledger.check(args.vm_id, args.generation)
        if holding is None or holding.migration_id != args.migration_id or holding.spec is None:
            raise NotFound(f"migration {args.migration_id} brought no machine {args.vm_id} here")
        return await self._proxies.reopen(self._driver, holding.spec, args.migration_id, args.proxy)

    def _check_leaving(self, args: wire.OpenPostcopy | wire.FetchRest) -> MachineSpec:
        # The floor is not raised here: that is a write to disk, and a guest stands still.
        holding = self._ledger.check(args.vm_id, args.generation)
        leaves = holding is not None and holding.role is Role.LEAVING and holding.migration_id == args.migration_id
        if holding is None or holding.spec is None or not leaves:
            raise NotFound(f"machine {args.vm_id} does not leave this node by migration {args.migration_id}")
        return holding.spec
