"""Has the power of barred nodes switched off, where they have a fence device, and records once it is seen to be off.

The warden decides who is barred (brakes included), control.fencing.decide what is done then. A device that fails costs
nothing: the warden waits the node's time out as it does for one without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from novacron.clock import Clock
from novacron.control.fencing.decide import Step, is_due, next_step
from novacron.control.fencing.device import Opens
from novacron.control.ha.warden import Warden
from novacron.control.store.kinds import FENCE_DEVICES, MEMBERS
from novacron.control.store.records import Records
from novacron.control.store.shelf import Stored
from novacron.errors import CompareFailed, NovaCronError
from novacron.model import membership
from novacron.model.fence_device import FenceDevice
from novacron.model.ha import Proof
from novacron.model.membership import Membership

LOOK_S = 1.0


class Fencer:
    """`run` until cancelled. A second one does no harm: the proof is written by one compare-and-swap."""

    def __init__(self, records: Records, warden: Warden, opens: Opens, clock: Clock) -> None:
        self._records = records
        self._warden = warden
        self._opens = opens
        self._clock = clock
        self._asked_s: dict[tuple[str, int], float] = {}  # by node and epoch
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._log = structlog.get_logger("fencer")

    async def run(self) -> None:
        try:
            while True:
                self._begin()
                await self._clock.sleep(LOOK_S)
        finally:
            looking = tuple(self._looking.values())
            for task in looking:
                task.cancel()
            await asyncio.gather(*looking, return_exceptions=True)

    def _begin(self) -> None:
        """A look at each node that is due, beside each other: one device that hangs keeps nobody waiting."""
        self._looking = {node_id: task for node_id, task in self._looking.items() if not task.done()}
        due = self._due()
        epochs = {(member.record.id, member.record.epoch) for member, _ in due.values()}
        self._asked_s = {key: at_s for key, at_s in self._asked_s.items() if key in epochs}
        for node_id, (member, device) in due.items():
            if node_id not in self._looking:
                look = self._look(member, device)
                self._looking[node_id] = asyncio.create_task(look, name=f"fencer {node_id}")

    def _due(self) -> Mapping[str, tuple[Stored[Membership], FenceDevice]]:
        devices = [stored.record for stored in self._records.all(FENCE_DEVICES)]
        found = {}
        for device in devices:
            member = self._records.get(MEMBERS, device.id)
            if member and is_due(member.record, self._warden.is_worth(device.id), self._warden.held(device.id)):
                found[device.id] = (member, device)
        return found

    async def _look(self, member: Stored[Membership], device: FenceDevice) -> None:
        """member: as it stood before the power is read, so that the reading speaks of it."""
        try:
            switch = self._opens(device)
            power = await switch.power()
            match next_step(power, self._ago_s(member.record)):
                case Step.PROVEN:
                    await self._prove(member.record, device)
                case Step.SWITCH_OFF:
                    self._log.error("a node's power is switched off", node_id=device.id, why=member.record.reason)
                    self._asked_s[device.id, member.record.epoch] = self._clock.monotonic_s()
                    await switch.off()
                case Step.WAIT:
                    pass
        except CompareFailed:
            self._log.info("somebody else was first; looking again")
        except NovaCronError as error:
            self._log.warning("a fence device failed", node_id=device.id, kind=device.kind.value, why=error.message)

    def _ago_s(self, member: Membership) -> float | None:
        asked_s = self._asked_s.get((member.id, member.epoch))
        return None if asked_s is None else self._clock.monotonic_s() - asked_s

    async def _prove(self, seen: Membership, device: FenceDevice) -> None:
        reason = f"{seen.reason}; its power was seen to be off ({device.kind.value})"

        def write(now: Membership) -> Membership | None:
            return membership.proven(now, seen, Proof.POWER, reason)

        stored = await self._records.change(MEMBERS, seen.id, write)
        if stored is not None:
            self._log.error("a node is fenced", node_id=seen.id, why=stored.record.reason)
