"""Where copies of each VM run, and for how long one that was to run did not: what its users had of it. Pure."""

from __future__ import annotations

import dataclasses

import msgspec

from novacron.model.machine import MachineStatus

STANDING = frozenset({MachineStatus.PAUSED, MachineStatus.HANDED_OFF, MachineStatus.INCOMING, MachineStatus.STALLED})


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """A time in which a VM was to run and no copy of it did. to_s None: it still does not. pause: it stood still as it
    moved; else it had ended.
    """

    vm_id: str
    from_s: float
    to_s: float | None
    pause: bool

    def lasts_s(self, now_s: float) -> float:
        """How long it has been."""
        return (now_s if self.to_s is None else self.to_s) - self.from_s


@dataclasses.dataclass
class _Stay:
    hosts: set[str] = dataclasses.field(default_factory=set)
    wanted: bool = False
    since_s: float | None = None  # that it is wanted, once it has run
    wanted_s: float = 0.0
    down_s: float | None = None
    pause: bool = False
    has_run: bool = False


class Presence:
    """Told of every change of a copy, and of what is wanted; times are virtual seconds and never go back."""

    def __init__(self) -> None:
        self._stays: dict[str, _Stay] = {}
        self._outages: list[Outage] = []

    def machine(self, host: str, vm_id: str, status: MachineStatus, now_s: float) -> Outage | None:
        """A copy on that host is in that status. → the outage that ends by this."""
        stay = self._stays.setdefault(vm_id, _Stay())
        if status is MachineStatus.RUNNING:
            stay.hosts.add(host)
        elif host in stay.hosts:
            stay.hosts.discard(host)
            stay.pause = status in STANDING
        return self._settle(vm_id, stay, now_s)

    def wanted(self, vm_id: str, wanted: bool, now_s: float) -> None:
        """Its owner wants it to run, or no longer."""
        stay = self._stays.setdefault(vm_id, _Stay())
        stay.wanted = wanted
        self._settle(vm_id, stay, now_s)

    def outages(self, now_s: float) -> list[Outage]:
        """All that took time, those that have not ended last."""
        going_on = [
            Outage(vm_id=vm_id, from_s=stay.down_s, to_s=None, pause=stay.pause)
            for vm_id, stay in self._stays.items()
            if stay.down_s is not None
        ]
        return [one for one in (*self._outages, *going_on) if one.lasts_s(now_s) > 0]

    def wanted_s(self, now_s: float) -> float:
        """For how long VMs were to run since each first ran, all of them together."""
        stays = self._stays.values()
        return sum(one.wanted_s + (now_s - one.since_s if one.since_s is not None else 0.0) for one in stays)

    def _settle(self, vm_id: str, stay: _Stay, now_s: float) -> Outage | None:
        stay.has_run = stay.has_run or bool(stay.hosts)
        counts = stay.wanted and stay.has_run
        if counts and stay.since_s is None:
            stay.since_s = now_s
        elif not counts and stay.since_s is not None:
            stay.wanted_s += now_s - stay.since_s
            stay.since_s = None
        is_down = counts and not stay.hosts
        if is_down and stay.down_s is None:
            stay.down_s = now_s
        elif not is_down and stay.down_s is not None:
            ended = Outage(vm_id=vm_id, from_s=stay.down_s, to_s=now_s, pause=stay.pause)
            stay.down_s = None
            self._outages.append(ended)
            return ended if counts else None
        return None
