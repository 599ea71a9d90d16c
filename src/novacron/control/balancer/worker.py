"""Has the balancer's moves begun while it is to act: looks every half a minute, and asks for migrations like anybody.

It remembers nothing: the migrations' records say what was moved lately, so a server that leads next goes on as it did.
"""

from __future__ import annotations

import structlog

from novacron.clock import Clock
from novacron.control.balancer.plan import Move
from novacron.control.balancer.service import BalancerService
from novacron.control.migrations.service import MigrationService
from novacron.control.once import Once
from novacron.control.store.records import Records
from novacron.errors import NovaCronError
from novacron.model.balancer import BALANCER, BALANCER_LABEL, Mode
from novacron.wire.rest.migrations import MigrationCreate

ROUND_S = 30.0


class BalancerWorker:
    """`run` until cancelled."""

    def __init__(self, records: Records, service: BalancerService, migrations: MigrationService, clock: Clock) -> None:
        self._records = records
        self._service = service
        self._migrations = migrations
        self._clock = clock
        self._log = structlog.get_logger("balancer")

    async def run(self) -> None:
        while True:
            await self._clock.sleep(ROUND_S)
            await self.round()

    async def round(self) -> None:
        """Begin what is best begun now, if it is to act."""
        plan = await self._service.plan() if self._acts() else None
        for move in plan.moves if plan else ():
            if self._acts():  # it may have been switched off meanwhile
                await self._begin(move)

    def _acts(self) -> bool:
        return self._service.settings.record.mode is Mode.ACT

    async def _begin(self, move: Move) -> None:
        """One move; one that is refused is no harm to the others, and the next round decides anew."""
        body = MigrationCreate(vm=move.vm_id, target_node=move.target_id, labels={BALANCER_LABEL: move.why.value})
        told = {"vm": move.vm_name, "target": move.target, "why": move.reasons[0].message}
        try:
            await self._migrations.create(body, BALANCER, Once(self._records.store, "", "", self._clock.wall()))
        except NovaCronError as refused:
            self._log.info("not begun", **told, refused=refused.message)
            return
        self._log.info("begun", **told)
