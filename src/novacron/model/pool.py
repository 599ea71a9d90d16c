"""A storage pool: where volumes lie. What a node must know to reach it (spec), and what each node found (reach)."""

from __future__ import annotations

import datetime
from enum import StrEnum

import msgspec


class PoolDriver(StrEnum):
    """How volumes are kept. The first two are files in a directory, the others block devices of their own."""

    DIRECTORY = "directory"
    NFS = "nfs"
    LVM_THIN = "lvm-thin"
    CEPH_RBD = "ceph-rbd"
    ISCSI = "iscsi"
    NBD = "nbd"


SHARED_DRIVERS = frozenset({PoolDriver.NFS, PoolDriver.CEPH_RBD, PoolDriver.ISCSI, PoolDriver.NBD})
"""Drivers whose nodes see the same volumes, unless the pool's maker says otherwise."""

UNIT_DRIVERS = frozenset({PoolDriver.ISCSI, PoolDriver.NBD})
"""Drivers whose pools are made of units that were there before: one a volume (see model.unit)."""


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node needs to reach a pool. options: the driver's own; a secret is the path of a file on the nodes,
    never the secret itself. An empty `options` with `directory`: the directory the agent was started with.
    """

    id: str
    driver: PoolDriver = PoolDriver.DIRECTORY
    options: dict[str, str] = {}


class Reach(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A pool as one node found it. reason: why it is not available, in words. Sizes in bytes, 0: not known."""

    available: bool
    checked_at: datetime.datetime
    reason: str = ""
    free_bytes: int = 0
    size_bytes: int = 0


class Pool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one pool. shared: nodes that reach it see the same volumes; else each node has its own.

    image_cache_bytes: how much of image files a node may keep in it that no volume needs (0: no limit).
    quota_bytes: how large its volumes may be together (0: no limit).
    """

    id: str
    name: str
    driver: PoolDriver
    created_at: datetime.datetime
    updated_at: datetime.datetime
    options: dict[str, str] = {}
    shared: bool = False
    labels: dict[str, str] = {}
    description: str = ""
    image_cache_bytes: int = 0
    quota_bytes: int = 0
    reach: dict[str, Reach] = {}  # node id -> what it found


def spec_of(pool: Pool) -> PoolSpec:
    """What a node is told of it."""
    return PoolSpec(id=pool.id, driver=pool.driver, options=pool.options)


def is_own(pool: Pool) -> bool:
    """Whether it is the directory that server and agents were started with: nodes say in their facts which one."""
    return pool.shared and pool.driver is PoolDriver.DIRECTORY and not pool.options
