"""An event: one change of one object, numbered so that a listener who was away can ask for what it missed."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

CHANGES_PER_REVISION = 1024
"""A store transaction may change several objects under one revision; each gets a number of its own."""


class ObjectType(StrEnum):
    VM = "vm"
    NODE = "node"
    IMAGE = "image"
    MIGRATION = "migration"
    POOL = "pool"
    VOLUME = "volume"
    NETWORK = "network"
    SECURITY_GROUP = "security_group"
    SNAPSHOT = "snapshot"
    SCHEDULE = "schedule"
    TEMPLATE = "template"
    MIGRATION_POLICY = "migration_policy"
    BULK_MIGRATION = "bulk_migration"
    MIGRATION_REHEARSAL = "migration_rehearsal"
    LINK = "link"
    BALANCER = "balancer"


class ChangeKind(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """type: `vm.updated` and the like; object: the object as the API shows it (as it last was, when deleted)."""

    seq: int
    type: str
    object_type: ObjectType
    object_id: str
    object: dict[str, Any]


def seq_of(revision: int, index: int) -> int:
    """The number of the index-th change (from 0) of a store revision. Grows strictly; fits in 53 bits."""
    return revision * CHANGES_PER_REVISION + index


def revision_of(seq: int) -> int:
    """The store revision that holds event `seq`."""
    return seq // CHANGES_PER_REVISION
