"""The verb that changes how fast a machine leaves this node, whichever way its stream goes."""

from __future__ import annotations

from novacron.agent.drivers.base import Driver
from novacron.agent.ledger import Ledger, Role
from novacron.agent.proxies import Proxies
from novacron.errors import NotFound
from novacron.wire import moving


class Bandwidth:
    """Idempotent: asked again, it is so already."""

    def __init__(self, ledger: Ledger, driver: Driver, proxies: Proxies) -> None:
        self._ledger = ledger
        self._driver = driver
        self._proxies = proxies

    async def change(self, args: moving.SetBandwidth) -> None:
        """From now on no faster than that. Its guest waits for nothing.

        :raise NotFound: it does not leave by that migration. :raise StateConflict: nothing is on its way yet, or any
        more.
        """
        holding = self._ledger.check(args.vm_id, args.generation)
        if holding is None or holding.role is not Role.LEAVING or holding.migration_id != args.migration_id:
            raise NotFound(f"machine {args.vm_id} does not leave this node by migration {args.migration_id}")
        self._proxies.set_cap(args.migration_id, args.bytes_per_s or None)
        await self._driver.set_bandwidth(args.vm_id, args.migration_id, args.bytes_per_s)
