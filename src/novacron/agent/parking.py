"""Parked machines: their memory and their devices' state, in files of this node that copies begin from.

    parked/<vm id>/memory    the machine's memory: shared with it while it runs, then mapped copy-on-write by copies
    parked/<vm id>/state     its devices; there is one only when it is parked

The directory is the agent's alone. Copies get the memory by a descriptor: they may open what they were handed, and
nobody else finds it. It lies in the run directory, so that it is memory and ends with the host's boot. A copy keeps
what it maps when the files go.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from novacron.agent.drivers.base import Launch
from novacron.errors import NotFound, Reason, Unsupported
from novacron.model.machine import MachineSpec

DIRECTORY = ".parked"


class Parking:
    """The files below `run_dir`. All methods block shortly."""

    def __init__(self, run_dir: Path) -> None:
        self._dir = run_dir / DIRECTORY

    def state(self, vm_id: str) -> Path:
        """Where the devices' state of a machine is written."""
        return self._dir / vm_id / "state"

    def holds(self, vm_id: str) -> bool:
        """Whether it is parked here."""
        return self.state(vm_id).exists()

    def may_hold(self, vm_id: str) -> bool:
        """Whether the memory of what runs is a file of its own here. A copy's is not, nor what came from elsewhere."""
        return self.state(vm_id).with_name("memory").exists()

    def outfitted(self, launch: Launch) -> Launch:
        """The launch with the files it needs: its parent's, or a new one for memory that may be parked later.

        :raise NotFound: its parent is not parked here.
        """
        spec = launch.spec
        if spec.parent_id:
            if not self.holds(spec.parent_id):
                raise NotFound(
                    f"machine {spec.parent_id} is not parked on this node",
                    [Reason("parent.not_parked", "its memory is gone", spec.parent_id, "start it and park it again")],
                )
            parent = self._dir / spec.parent_id
            return msgspec.structs.replace(launch, memory=parent / "memory", state=parent / "state")
        if not spec.shared_memory:
            return launch
        return msgspec.structs.replace(launch, memory=self._fresh(spec.vm_id), memory_shared=True)

    def clear(self, vm_id: str) -> None:
        """Nothing of it is kept any more. Absent: fine."""
        if (self._dir / vm_id).exists():
            shutil.rmtree(self._dir / vm_id)

    def _fresh(self, vm_id: str) -> Path:
        """An empty file of its own; copies of an earlier one keep theirs. Any user may open it who gets to it."""
        self.clear(vm_id)
        (self._dir / vm_id).mkdir(mode=0o700, parents=True)
        self._dir.chmod(0o700)
        path = self._dir / vm_id / "memory"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(handle, 0o666)
        os.close(handle)
        return path


def check_parkable(spec: MachineSpec | None, *, may_hold: bool) -> None:
    """may_hold: what Parking says of it.

    :raise Unsupported: its memory is no file of its own, or it has cards, whose addresses copies would share.
    """
    if spec is None or not spec.shared_memory:
        raise Unsupported(
            "the machine's memory cannot be parked",
            [Reason("memory.not_shared", "it was not started with shared_memory", remedy="make it with shared memory")],
        )
    if not may_hold:
        why = "it began as a copy or on another node, and has not been started since"
        raise Unsupported(
            "the machine's memory cannot be parked",
            [Reason("memory.not_here", why, spec.vm_id, "novacron vm restart, then park it")],
        )
    if spec.nics:
        raise Unsupported(
            "a machine with network cards cannot be parked",
            [Reason("nics.present", "copies would share their addresses", remedy="detach its cards first")],
        )
