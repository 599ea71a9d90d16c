"""The storage pools of this node: the one it was started with, and those that specs name; each made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from novacron.agent.storage.base import Pool
from novacron.errors import InvalidInput
from novacron.model.machine import Disk, MachineSpec
from novacron.model.pool import PoolDriver, PoolSpec


class OwnPool(Pool, Protocol):
    """The pool the agent was started with: a directory, where kernels, firmware and ISO files lie too."""

    async def pool_id(self) -> str:
        """Its own id, the same on all nodes that share it. :raise Unavailable: the pool is not there."""
        ...

    def usage(self) -> tuple[int, int]:
        """Bytes free and in all. :raise Unavailable"""
        ...

    def machines_dir(self) -> Path:
        """Where directories of machines may be made (agent.belongings)."""
        ...

    def image_path(self, digest: str) -> Path:
        """:raise NotFound: the pool does not hold it."""
        ...


class Depot:
    """own: the default pool. make: builds the pool a spec describes (`agent.storage.kinds.maker`)."""

    def __init__(self, own: OwnPool, make: Callable[[PoolSpec], Pool]) -> None:
        self.own = own
        self._make = make
        self._made: dict[str, tuple[PoolSpec, Pool]] = {}

    def pool(self, spec: PoolSpec | None) -> Pool:
        """The pool a spec describes; None, no id, or a directory without a path: the default one. Made anew when its
        options changed.

        :raise InvalidInput: an option is missing or wrong.
        """
        if spec is None or not spec.id or (spec.driver is PoolDriver.DIRECTORY and not spec.options):
            return self.own
        held = self._made.get(spec.id)
        if held is None or held[0] != spec:
            held = self._made[spec.id] = (spec, self._make(spec))
        return held[1]

    def pools(self) -> tuple[Pool, ...]:
        """Every pool that was asked for so far, the default one first."""
        return (self.own, *(pool for _, pool in self._made.values()))

    def pool_of(self, spec: MachineSpec, disk: Disk) -> Pool:
        """The pool a machine's disk lies in. :raise InvalidInput: the spec does not say how to reach it."""
        if not disk.pool_id:
            return self.own
        named = next((pool for pool in spec.pools if pool.id == disk.pool_id), None)
        if named is None:
            raise InvalidInput.field(
                "pools", f"the spec does not describe pool {disk.pool_id} of volume {disk.volume_id}", "add the pool"
            )
        return self.pool(named)

    def image_path(self, digest: str) -> Path:
        """A kernel, firmware or ISO file. :raise NotFound: this node does not hold it."""
        return self.own.image_path(digest)
