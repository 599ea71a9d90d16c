"""Which device a machine starts from first: whether the numbers that are asked for can be given. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from novacron.errors import InvalidInput
from novacron.model.machine import MachineKind
from novacron.model.vm import VmSpec
from novacron.wire.rest.devices import NicIn
from novacron.wire.rest.vms import VmCreate

OWN = "give each disk, card and drive a number of its own, or 0"


def check_born(asked: VmCreate) -> None:
    """:raise InvalidInput: two devices of a new VM have one number, or a card is to boot what cannot."""
    taken: dict[int, str] = {}
    for field, number in _numbers(asked):
        if number in taken:
            raise InvalidInput.field(field, f"is {number}, as {taken[number]} is", OWN)
        taken[number] = field
    for place, nic in enumerate(asked.nics):
        check_card(asked.machine, nic.boot_order, f"nics.{place}.boot_order")


def check_free(spec: VmSpec, number: int) -> None:
    """Whether a device that is attached or changed may have that number. :raise InvalidInput: another has it."""
    for name, part_id, order in _given(spec):
        if number and order == number:
            raise InvalidInput.field("boot_order", f"is {number}, as that of {name} {part_id} is", OWN)


def check_card(machine: MachineKind, number: int, field: str = "boot_order") -> None:
    """:raise InvalidInput: machines of that kind boot from no card."""
    if number and machine is not MachineKind.Q35:
        raise InvalidInput.field(field, "a microvm does not boot from the network", "leave it out, or use machine q35")


def check_copies(nics: Iterable[NicIn]) -> None:
    """:raise InvalidInput: a card of a copy has a number. A copy does not boot, and cards come to it as it runs."""
    for place, nic in enumerate(nics):
        if nic.boot_order:
            why = "a copy does not boot: it begins where the parked VM stood"
            raise InvalidInput.field(f"nics.{place}.boot_order", why, "leave it out, and change the card later")


def _numbers(asked: VmCreate) -> Iterator[tuple[str, int]]:
    given = (
        ("disks", [disk.boot_order for disk in asked.disks]),
        ("media", [one.boot_order for one in asked.media]),
        ("nics", [nic.boot_order for nic in asked.nics]),
    )
    for noun, numbers in given:
        yield from ((f"{noun}.{place}.boot_order", number) for place, number in enumerate(numbers) if number)


def _given(spec: VmSpec) -> Iterator[tuple[str, str, int]]:
    yield from (("volume", disk.volume_id, disk.boot_order) for disk in spec.disks)
    yield from (("drive", one.id, one.boot_order) for one in spec.media)
    yield from (("card", nic.id, nic.boot_order) for nic in spec.nics)
