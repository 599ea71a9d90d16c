"""The migration verbs of this node: one step at a time, no states; each finds its work done when asked again.

    arrivals     the target's half of a move with memory: accept, take_over, verify, settle, discard
    departures   the source's: copy_disks, send, release, reclaim
    cold         what a move without memory needs beside
    postcopy     what one that ends in post-copy needs beside
    rehouse      its disks into other pools of this node

Before the commit the source holds the machine under its generation, after it the target does under the next. The
roles in the ledger (LEAVING, INCOMING) keep ordinary verbs from running a copy whose other half may run.
"""

from __future__ import annotations

from novacron.agent.arrivals import Arrivals
from novacron.agent.bandwidth import Bandwidth
from novacron.agent.carry import Carry
from novacron.agent.cold import Cold
from novacron.agent.copier import Copier
from novacron.agent.departures import Departures
from novacron.agent.drivers.base import Driver, ProgressListener
from novacron.agent.examiner import Examiner
from novacron.agent.ledger import Ledger
from novacron.agent.machines import Machines
from novacron.agent.network import StayAtHome, Travel
from novacron.agent.postcopy import Announce, Postcopy
from novacron.agent.provisioner import Provisioner
from novacron.agent.proxies import Proxies
from novacron.agent.rehouse import Rehouse
from novacron.agent.source_copies import SourceCopies
from novacron.clock import Clock
from novacron.wire import agent as wire


class Mover:
    """Who does each of them, put together."""

    def __init__(
        self,
        ledger: Ledger,
        provisioner: Provisioner,
        driver: Driver,
        machines: Machines,
        *,
        proxies: Proxies,
        announce: Announce,
        clock: Clock,
        travel: Travel | None = None,
    ) -> None:
        self._announce = announce
        travel = travel or StayAtHome()
        self.cold = Cold(ledger, provisioner, driver, machines, clock)
        self.arrivals = Arrivals(ledger, provisioner, driver, machines, self.cold, proxies=proxies, travel=travel)
        self.departures = Departures(
            ledger, provisioner, driver, machines, self.cold, proxies=proxies, travel=travel, teller=self._teller
        )
        self.examiner = Examiner(ledger, provisioner, driver, machines)
        self.carry = Carry(ledger, provisioner, driver)
        self.rehouse = Rehouse(ledger, provisioner, driver, self.cold, self._teller)
        self.copier = Copier(ledger, driver, self._teller)
        self.bandwidth = Bandwidth(ledger, driver, proxies)
        self.source_copies = SourceCopies(ledger, provisioner)
        self.postcopy = Postcopy(ledger, driver, host=proxies.host, announce=announce)

    def _teller(self, migration_id: str) -> ProgressListener:
        return lambda progress: self._announce(wire.MigrationProgress(migration_id=migration_id, progress=progress))
