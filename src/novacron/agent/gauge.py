"""The verb that measures a machine of this node before it moves."""

from __future__ import annotations

from novacron.agent.drivers.base import Driver
from novacron.agent.ledger import Ledger, Role
from novacron.errors import NotFound
from novacron.model.prediction import Measurement
from novacron.wire.moving import Measure


class Gauge:
    """Looks, and changes nothing; so it waits for no other verb and none for it."""

    def __init__(self, ledger: Ledger, driver: Driver) -> None:
        self._ledger = ledger
        self._driver = driver

    async def measure(self, args: Measure) -> Measurement:
        """What it writes and holds. :raise NotFound: it is not this node's own. Else raises as the driver does."""
        holding = self._ledger.check(args.vm_id, args.generation)
        if holding is None or holding.role is not Role.OWNED:
            raise NotFound(f"machine {args.vm_id} is not this node's own")
        return await self._driver.measure(args.vm_id)
