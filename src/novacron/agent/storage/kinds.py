"""Which class keeps which kind of pool, and what it needs of the node."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from novacron.agent.storage.base import Pool
from novacron.agent.storage.directory import DirectoryPool
from novacron.agent.storage.tool import Tools
from novacron.errors import InvalidInput, Unsupported
from novacron.model.pool import PoolDriver, PoolSpec

PROGRAMS: dict[PoolDriver, tuple[str, ...]] = {
    PoolDriver.DIRECTORY: ("qemu-img",),
}
"""What each kind of pool needs installed."""


def abilities() -> tuple[str, ...]:
    """`pool.<driver>` for each kind of pool whose programs this node has."""
    return tuple(f"pool.{kind.value}" for kind, needed in PROGRAMS.items() if all(map(shutil.which, needed)))


def maker(tools: Tools) -> Callable[[PoolSpec], Pool]:
    """Builds pools whose tools run as `tools` says."""

    def make(spec: PoolSpec) -> Pool:
        match spec.driver:
            case PoolDriver.DIRECTORY:
                return DirectoryPool(_path(spec), tools=tools)
            case _:
                raise Unsupported(f"this agent has no driver for {spec.driver.value} pools")

    return make


def _path(spec: PoolSpec) -> Path:
    path = Path(spec.options.get("path", ""))
    if not path.is_absolute() or ".." in path.parts:
        raise InvalidInput.field("options.path", "is not an absolute path", "give the directory the pool lies in")
    return path
