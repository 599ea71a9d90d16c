"""Placement, in words: taints of nodes, and what a VM wishes of the node it is put on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

NODE_LABEL = "novacron.io/node"
"""Every node has this label by itself: its name."""


class Taint(msgspec.Struct, frozen=True, kw_only=True):
    """Keeps VMs off a node that do not tolerate it. effect: refuse, or avoid (only without a choice)."""

    key: str
    value: str = ""
    effect: str = "refuse"


class Toleration(msgspec.Struct, frozen=True, kw_only=True):
    """A VM minds no taint with this key; with a value: only with that one."""

    key: str
    value: str = ""


class VmRule(msgspec.Struct, frozen=True, kw_only=True):
    """How a VM stands to others with all of these labels. kind: together, apart or spread; over: what one place is."""

    kind: str
    labels: Mapping[str, str]
    over: str = NODE_LABEL
    hard: bool = True
    weight: int = 50


class NodeRule(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes with all of these labels, or (avoid) the others."""

    labels: Mapping[str, str]
    avoid: bool = False
    hard: bool = True
    weight: int = 50


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM wishes of its node. policy: spread, pack or balance; None: the server's."""

    policy: str | None = None
    tolerations: Sequence[Toleration] = ()
    vm_rules: Sequence[VmRule] = ()
    node_rules: Sequence[NodeRule] = ()
