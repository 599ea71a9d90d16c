"""A machine that is not this node's any more: nothing of it stays here but its volumes and the floor."""

from __future__ import annotations

from novacron.agent.drivers.base import Driver
from novacron.agent.ledger import Holding, Kept, Ledger, Role
from novacron.agent.provisioner import Provisioner
from novacron.model.migration import Figures


class Clearing:
    """For who has the machine's turn in the ledger."""

    def __init__(self, ledger: Ledger, provisioner: Provisioner, driver: Driver) -> None:
        self._ledger = ledger
        self._provisioner = provisioner
        self._driver = driver

    async def clear(
        self, holding: Holding, migration_id: str = "", figures: Figures | None = None, kept: Kept | None = None
    ) -> None:
        """Nothing of it runs here: clear away the rest. The floor remembers what is told beside it.

        :raise StateConflict: it runs; nothing has been cleared away.
        """
        if self._driver.report(holding.vm_id) is not None:
            await self._driver.forget(holding.vm_id)
        await self._provisioner.clear_away(holding.vm_id, holding.spec)
        gone = Holding(
            vm_id=holding.vm_id,
            generation=holding.generation,
            role=Role.GONE,
            migration_id=migration_id,
            figures=figures,
            kept=kept,
        )
        await self._ledger.put(gone)
