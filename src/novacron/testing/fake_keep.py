"""What the fake driver keeps of a machine beside its volumes: one file, that its firmware writes at its first start.

As with a real hypervisor its content is also in memory: it comes with a stream, and is written when the guest goes on.
"""

from __future__ import annotations

from pathlib import Path

from novacron.agent.drivers.base import Launch
from novacron.model.machine import Belonging, Firmware
from novacron.testing.fake_world import FakeMachine

FILE = "vars"


def made(launch: Launch, host: str) -> str:
    """What the file holds once a machine was made of that launch; empty: there is none."""
    if launch.keep is None or launch.spec.firmware is not Firmware.UEFI:
        return ""
    path = launch.keep / FILE
    if not path.exists():
        path.write_text(f"as {host} makes it")
    return path.read_text()


def resumed(machine: FakeMachine) -> None:
    """What came with its memory is written."""
    if machine.launch.keep is not None and machine.kept:
        (machine.launch.keep / FILE).write_text(machine.kept)


def packed(keep: Path) -> tuple[Belonging, ...]:
    path = keep / FILE
    return (Belonging(name=FILE, data=path.read_bytes()),) if path.exists() else ()


def unpacked(keep: Path, files: tuple[Belonging, ...]) -> None:
    for one in files:
        (keep / one.name).write_bytes(one.data)
