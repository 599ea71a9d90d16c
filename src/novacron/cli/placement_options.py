"""What the options about placement mean, as the body that is sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from novacron.cli.disk_spec import read_number
from novacron.cli.options import PAIR

if TYPE_CHECKING:
    from novacron.client.placement import NodeRule, Placement, Taint, Toleration, VmRule

POLICIES = ("spread", "pack", "balance")
KINDS = ("together", "apart", "spread")
EFFECTS = ("refuse", "avoid")
RULE_RULE = (
    "together|apart|spread,KEY=VALUE…[,over=LABEL][,soft|weight=N]: with VMs of these labels on one node, on none of "
    "theirs, or evenly; over: on one value of that label of nodes, as over=zone; soft: if it can be"
)
NODE_RULE_RULE = "KEY=VALUE…[,avoid][,soft|weight=N]: nodes with these labels, or the others"


class RuleType(click.ParamType["dict[str, Any]"]):
    """One `--affinity` or `--node-rule`: its words, as arguments of VmRule or NodeRule."""

    name = "rule"

    def __init__(self, *, of_vms: bool) -> None:
        self._of_vms = of_vms

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            return read_vm_rule(str(value)) if self._of_vms else read_node_rule(str(value))
        except ValueError as wrong:
            self.fail(f"{wrong}; give {RULE_RULE if self._of_vms else NODE_RULE_RULE}", param, ctx)


class TolerationType(click.ParamType["tuple[str, str]"]):
    """KEY or KEY=VALUE."""

    name = "toleration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        text = str(value)
        return PAIR.convert(text, param, ctx) if "=" in text else (text, "")


def wishes(function: Any) -> Any:
    """Options for what a VM wishes of its node."""
    for option in (
        click.option("--node-rule", "node_rules", type=RuleType(of_vms=False), metavar="RULE", multiple=True,
                     help=f"Which nodes it is for: {NODE_RULE_RULE}. Repeatable."),
        click.option("--affinity", "vm_rules", type=RuleType(of_vms=True), metavar="RULE", multiple=True,
                     help=f"How it stands to other VMs: {RULE_RULE}. Repeatable."),
        click.option("--tolerate", "tolerations", type=TolerationType(), metavar="KEY[=VALUE]", multiple=True,
                     help="It minds no such taint of nodes. Repeatable."),
        click.option("--policy", type=click.Choice(POLICIES),
                     help="Which node is best: the emptiest, the fullest, or the one it evens out; default: the "
                     "server's."),
    ):  # fmt: skip
        function = option(function)
    return function


def placement_of(given: dict[str, Any]) -> Placement | None:
    """What the options of `wishes` come to, taken out of all that were given; None: there are none."""
    from novacron.client.placement import NodeRule, Placement, Toleration, VmRule

    policy, tolerations = given.pop("policy"), given.pop("tolerations")
    vm_rules, node_rules = given.pop("vm_rules"), given.pop("node_rules")
    if policy is None and not (tolerations or vm_rules or node_rules):
        return None
    return Placement(
        policy=policy,
        tolerations=tuple(Toleration(key=key, value=value) for key, value in tolerations),
        vm_rules=tuple(VmRule(**rule) for rule in vm_rules),
        node_rules=tuple(NodeRule(**rule) for rule in node_rules),
    )


def read_vm_rule(text: str) -> dict[str, Any]:
    """Arguments of VmRule. :raise ValueError: says which word is wrong."""
    kind, *words = text.split(",")
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
    rule: dict[str, Any] = {"kind": kind}
    over = [word for word in words if word.startswith("over=")]
    if over:
        rule["over"] = over[-1].removeprefix("over=")
    return rule | _read(word for word in words if word not in over)


def read_node_rule(text: str) -> dict[str, Any]:
    """Arguments of NodeRule. :raise ValueError: says which word is wrong."""
    words = text.split(",")
    avoid = {"avoid": True} if "avoid" in words else {}
    return avoid | _read(word for word in words if word != "avoid")


def _read(words: Iterable[str]) -> dict[str, Any]:
    labels: dict[str, str] = {}
    rule: dict[str, Any] = {"labels": labels}
    for word in words:
        key, separator, value = word.partition("=")
        if word == "soft":
            rule["hard"] = False
        elif key == "weight":
            rule |= {"hard": False, "weight": read_number(value)}
        elif separator and key:
            labels[key] = value
        else:
            raise ValueError(f"{word!r} means nothing here")
    if not labels:
        raise ValueError("it names no label")
    return rule


def read_taints(changes: tuple[str, ...]) -> tuple[list[Taint], list[str]]:
    """`KEY[=VALUE][:EFFECT]` and `KEY-`: what is to be there, and the keys that are to go.

    :raise click.BadParameter: says which is wrong.
    """
    from novacron.client.placement import Taint

    taints, gone = [], []
    for change in changes:
        words, _, effect = change.partition(":")
        key, _, value = words.partition("=")
        if change.endswith("-") and len(change) > 1 and "=" not in change and ":" not in change:
            gone.append(change.removesuffix("-"))
        elif key and effect in ("", *EFFECTS):
            taints.append(Taint(key=key, value=value, effect=effect or EFFECTS[0]))
        else:
            message = f"{change!r} is neither KEY[=VALUE][:{'|'.join(EFFECTS)}] nor KEY-"
            raise click.BadParameter(message, param_hint="TAINT")
    return taints, gone


def taint_words(taint: Taint) -> str:
    """As `node taint` takes it."""
    return f"{taint.key}={taint.value}:{taint.effect}" if taint.value else f"{taint.key}:{taint.effect}"


def toleration_words(one: Toleration) -> str:
    """As `--tolerate` takes it."""
    return f"{one.key}={one.value}" if one.value else one.key


def vm_rule_words(rule: VmRule) -> str:
    """As `--affinity` takes it."""
    from novacron.client.placement import NODE_LABEL

    over = [] if rule.over == NODE_LABEL else [f"over={rule.over}"]
    return ",".join([rule.kind, *_labels(rule), *over, *_softness(rule)])


def node_rule_words(rule: NodeRule) -> str:
    """As `--node-rule` takes it."""
    return ",".join([*_labels(rule), *(["avoid"] if rule.avoid else []), *_softness(rule)])


def _labels(rule: VmRule | NodeRule) -> list[str]:
    return [f"{key}={value}" for key, value in sorted(rule.labels.items())]


def _softness(rule: VmRule | NodeRule) -> list[str]:
    return [] if rule.hard else [f"weight={rule.weight}"]
