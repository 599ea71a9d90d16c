"""A security group's rule as words on the command line: what is read is also what is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from novacron.client.security_groups import Rule

RULE_RULE = "in|out[,tcp|udp|icmp][,port=N|N-M][,cidr=SUBNET|group=GROUP]"


class RuleType(click.ParamType["dict[str, Any]"]):
    """One rule: what its words mean, as arguments of Rule."""

    name = "rule"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            return read_rule(str(value))
        except ValueError as wrong:
            self.fail(f"{wrong}; give {RULE_RULE}", param, ctx)


def read_rule(text: str) -> dict[str, Any]:
    """Arguments of Rule. :raise ValueError: says which word is wrong."""
    rule: dict[str, Any] = {}
    for word in text.split(","):
        key, _, value = word.partition("=")
        if word in ("in", "out") and "direction" not in rule:
            rule["direction"] = word
        elif word in ("any", "tcp", "udp", "icmp") and "protocol" not in rule:
            rule["protocol"] = word
        elif key == "port" and value:
            rule["port_first"], rule["port_last"] = _ports(value)
        elif key in ("cidr", "group") and value:
            rule[key] = value
        else:
            raise ValueError(f"{word!r} means nothing here")
    if "direction" not in rule:
        raise ValueError(f"{text!r} says neither in nor out")
    return rule


def _ports(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not all(port.isascii() and port.isdecimal() and 0 < int(port) <= 65535 for port in (first, last or first)):
        raise ValueError(f"{text!r} is no port")
    return int(first), int(last or first)


def rule_words(rule: Rule, names: dict[str, str]) -> str:
    """The words that mean this rule. names: of groups, by id."""
    words = [rule.direction]
    if rule.protocol != "any":
        words.append(rule.protocol)
    if rule.port_first:
        words.append(f"port={rule.port_first}" + (f"-{rule.port_last}" if rule.port_last != rule.port_first else ""))
    if rule.cidr:
        words.append(f"cidr={rule.cidr}")
    if rule.group:
        words.append(f"group={names.get(rule.group, rule.group)}")
    return ",".join(words)
