"""One node of the lab: its place in the lab's network, its agent, and the power that both need."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TypeVar

from novacron.lab import space
from novacron.lab.failure import LabFailed
from novacron.lab.links import Links
from novacron.lab.network import node_address
from novacron.lab.processes import Child, disk_dir, name_of, own_pool, run_dir
from novacron.lab.record import LabDir
from novacron.lab.space import Space

Result = TypeVar("Result")


class Node:
    """A host as its agent sees one: network, processes, mounts, name and boot of its own. Made with the power on."""

    def __init__(self, number: int, command: list[str], lab: LabDir, links: Links) -> None:
        """command: its agent's. :raise LabFailed: not root."""
        self.number = number
        self.name = name_of(number)
        self.address = node_address(number)
        self._links = links
        self._directory = lab.path / self.name
        self._space: Space | None = None
        self._mounts = {disk_dir(lab.path): self._directory / "disk"}
        for directory in (self._directory, *self._mounts, *self._mounts.values()):
            directory.mkdir(mode=0o711, exist_ok=True)
        own_pool(self._directory).mkdir(mode=0o711, exist_ok=True)
        lab.note(space.command(self._directory))
        self._boot()
        try:
            self.agent = Child(self.name, command, lab, self)
        except BaseException:
            self._die()
            raise

    @property
    def is_on(self) -> bool:
        """Whether its processes may live. Its agent is waited for here: before that its first process cannot end."""
        self.agent.process.poll()
        return self._space is not None and self._space.lives

    @property
    def pid(self) -> int | None:
        """Of its first process, as this machine counts. None: it is off."""
        return self._space.pid if self._space and self.is_on else None

    def power_on(self) -> None:
        """Boot it: what lies on its disk is there again, what ran is not. On already: fine."""
        if not self.is_on:
            self.power_off()  # its first process may have been killed by somebody else
            self._boot()
            self.agent.start_again()

    def power_off(self) -> None:
        """As when somebody pulls the plug: everything on it is dead when this returns. Off already: fine.

        :raise LabFailed: whoever started a process in here has not waited for its end.
        """
        if self._space is not None:
            self._space.kill()
            self.agent.process.wait()
            self._die()

    def run(self, call: Callable[[], Result]) -> Result:
        """Do `call` as a process of this node would; processes it starts die with the node.

        :raise LabFailed: it is off.
        """
        if self._space is None:
            raise LabFailed.because(f"{self.name} is off", "power it on first")
        return self._space.run(call)

    def host_pid(self, pid: int) -> int:
        """What this machine calls the node's process `pid`. :raise LabFailed: it has none of that number."""
        found = space.host_pid(self._space.pid, pid) if self._space else None
        if found is None:
            raise LabFailed.because(f"{self.name} has no process {pid}")
        return found

    def _boot(self) -> None:
        shutil.rmtree(run_dir(self._directory), ignore_errors=True)  # on a host it is in memory
        namespace = self._links.join(self.number)
        try:
            self._space = Space(namespace, self.name, self._directory, self._mounts)
        except BaseException:
            self._links.part(self.number)
            raise

    def _die(self) -> None:
        if self._space is not None:
            self._space.end()
            self._space = None
            self._links.part(self.number)
