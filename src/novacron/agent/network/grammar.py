"""Sentences of nftables as JSON data: expressions, and the commands that make up a transaction. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

Command = dict[str, Any]
Expression = dict[str, Any]

ACCEPT: Expression = {"accept": None}
DROP: Expression = {"drop": None}


def match(left: Any, right: Any, op: str = "==") -> Expression:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str) -> Any:
    return {"payload": {"protocol": protocol, "field": field}}


def raw(offset_bits: int, length_bits: int) -> Any:
    """Bits of the transport header and what follows it."""
    return {"payload": {"base": "th", "offset": offset_bits, "len": length_bits}}


def meta(key: str) -> Any:
    return {"meta": {"key": key}}


def concat(*parts: Any) -> Any:
    return {"concat": list(parts)}


def masked(left: Any, mask: Any) -> Any:
    return {"&": [left, mask]}


def prefix(address: str, length: int) -> Any:
    return {"prefix": {"addr": address, "len": length}}


def any_of(values: Collection[Any]) -> Any:
    """A set without name."""
    return {"set": list(values)}


def goto(chain: str) -> Expression:
    return {"goto": {"target": chain}}


def jump(chain: str) -> Expression:
    return {"jump": {"target": chain}}


def remember(name: str, key: Any, timeout_s: int) -> Expression:
    """Put a key into a set, or keep it there for longer. A full set: the rule ends here, unmatched."""
    return {"set": {"op": "update", "elem": {"elem": {"val": key, "timeout": timeout_s}}, "set": f"@{name}"}}


def forget(name: str, key: Any) -> Expression:
    return {"set": {"op": "delete", "elem": key, "set": f"@{name}"}}


class Table:
    """Commands about one table of ours, which nobody else writes to."""

    def __init__(self, family: str, name: str) -> None:
        self.family = family
        self.name = name

    def make(self) -> Command:
        return {"add": {"table": {"family": self.family, "name": self.name}}}

    def delete(self) -> Command:
        return {"delete": {"table": {"family": self.family, "name": self.name}}}

    def chain(self, name: str, rules: Sequence[Sequence[Expression]] = ()) -> list[Command]:
        """A chain with exactly these rules."""
        return [self._do("add", "chain", name=name), *self._fill(name, rules)]

    def hooked(
        self, name: str, hook: str, priority: int, rules: Sequence[Sequence[Expression]], kind: str = "filter"
    ) -> list[Command]:
        """A chain that the kernel enters by itself."""
        chain = self._do("add", "chain", name=name, type=kind, hook=hook, prio=priority, policy="accept")
        return [chain, *self._fill(name, rules)]

    def verdicts(self, name: str) -> Command:
        """A map from interface names to chains."""
        return self._do("add", "map", name=name, type="ifname", map="verdict")

    def send(self, name: str, interface: str, chain: str) -> Command:
        return self._do("add", "element", name=name, elem=[[interface, goto(chain)]])

    def unsend(self, name: str, interface: str) -> Command:
        return self._do("delete", "element", name=name, elem=[interface])

    def memory(self, name: str, kinds: Sequence[str], size: int) -> Command:
        """A set whose elements pass away."""
        return self._do("add", "set", name=name, type=list(kinds), flags=["timeout"], size=size)

    def elements(self, name: str, elements: Sequence[Any]) -> Command:
        return self._do("add", "element", name=name, elem=list(elements))

    def drop_chain(self, name: str) -> list[Command]:
        return [self._do("flush", "chain", name=name), self._do("delete", "chain", name=name)]

    def drop_set(self, name: str) -> Command:
        return self._do("delete", "set", name=name)

    def _fill(self, name: str, rules: Sequence[Sequence[Expression]]) -> list[Command]:
        wanted = [self._do("add", "rule", chain=name, expr=list(rule)) for rule in rules]
        return [self._do("flush", "chain", name=name), *wanted]

    def _do(self, verb: str, what: str, **words: Any) -> Command:
        return {verb: {what: {"family": self.family, "table": self.name, **words}}}
