"""Where VMs may run, as people say it: taints of nodes, and what a VM wishes (policy, tolerations, rules)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

NODE_LABEL = "novacron.io/node"
"""Every node has this label by itself: its name. A rule over it is about single nodes."""

ARCHITECTURE_LABEL = "novacron.io/arch"
"""Every node that has reported has this label by itself: its architecture."""

OWN_LABELS = (NODE_LABEL, ARCHITECTURE_LABEL)
DEFAULT_WEIGHT = 50


class Effect(StrEnum):
    """What a taint does to VMs that do not tolerate it; those that run there go on running."""

    REFUSE = "refuse"
    AVOID = "avoid"


class Taint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A mark of a node that keeps VMs away. A node has at most one of a key."""

    key: str
    value: str = ""
    effect: Effect = Effect.REFUSE


class Toleration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A VM minds no taint with this key. value: only with this one; empty: with any."""

    key: str
    value: str = ""


class PlacementPolicy(StrEnum):
    """Which of the nodes that can take a VM is best.

    spread: the one with most room left; pack: the one with least; balance: the one whose CPU and memory are then used
    in the most equal shares, so that neither is left over without the other.
    """

    SPREAD = "spread"
    PACK = "pack"
    BALANCE = "balance"


class Weights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What counts how much when nodes are compared.

    memory, vcpus: the shares that stay free, or are used, by the policy. accelerated: that the hardware helps.
    rules: that the VM's soft rules are fulfilled. untainted: that no taint would rather have it elsewhere.
    """

    memory: float = 1.0
    vcpus: float = 0.5
    accelerated: float = 1.0
    rules: float = 2.0
    untainted: float = 2.0


WEIGHTS = Weights()


class RuleKind(StrEnum):
    """together: where such a VM is, once there is one; apart: where none is; spread: where fewest are."""

    TOGETHER = "together"
    APART = "apart"
    SPREAD = "spread"


class VmRule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """How a VM stands to others. labels: of those it is about, all of them (an empty value: any value).

    over: the label of nodes that says what one place is: nodes with the same value are one. hard: where it would be
    broken the VM is not placed; else it counts for `weight`. A hard `apart` binds those VMs as well.
    """

    kind: RuleKind
    labels: dict[str, str]
    over: str = NODE_LABEL
    hard: bool = True
    weight: int = DEFAULT_WEIGHT


class NodeRule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Which nodes a VM is for: those with all of the labels (an empty value: any value); avoid: the others.

    hard, weight: as of a VmRule.
    """

    labels: dict[str, str]
    avoid: bool = False
    hard: bool = True
    weight: int = DEFAULT_WEIGHT


class PlacementWishes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a VM wishes of the place where it is put. policy None: the server's."""

    policy: PlacementPolicy | None = None
    tolerations: tuple[Toleration, ...] = ()
    vm_rules: tuple[VmRule, ...] = ()
    node_rules: tuple[NodeRule, ...] = ()


NO_WISHES = PlacementWishes()


def tolerates(tolerations: Iterable[Toleration], taint: Taint) -> bool:
    """Whether one of the tolerations is about the taint."""
    return any(one.key == taint.key and one.value in ("", taint.value) for one in tolerations)


def matches(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether the labels have all that are wanted; an empty value: any value."""
    return all(key in labels and value in ("", labels[key]) for key, value in wanted.items())


def in_words(labels: Mapping[str, str]) -> str:
    """As people write them."""
    return ", ".join(f"{key}={value}" if value else key for key, value in sorted(labels.items()))
