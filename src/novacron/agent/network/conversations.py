"""Which conversations a card may have, as nftables rules that remember what was allowed to begin. Pure.

The bridge family has no connection tracking on every kernel, so each card has sets of its own: what a rule lets begin
is put there, whatever matches it afterwards, in either direction, passes and keeps it there. A key always names the
card's own end first, so that both directions look for the same one. See docs/decisions/0007-flows-in-sets.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from novacron.agent.network.grammar import (
    ACCEPT,
    DROP,
    Expression,
    any_of,
    concat,
    forget,
    goto,
    masked,
    match,
    meta,
    payload,
    prefix,
    raw,
    remember,
)
from novacron.agent.network.subnets import Address, of_version, subnet
from novacron.model.network import Direction, Protocol, Rule

NEW_S, TCP_S, TCP_CLOSING_S, UDP_S, ICMP_S, OTHER_S, PARTS_S = 60, 7440, 120, 300, 60, 600, 30
OPEN_SIZE, PLAIN_SIZE, PARTS_SIZE = 32768, 8192, 1024
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
NUMBER = {Protocol.TCP: TCP, Protocol.UDP: UDP}

Rules = list[list[Expression]]


class Family(NamedTuple):
    """The words of one IP version. own, quoted: where an ICMP error quotes the sender and receiver, in bits."""

    version: int
    header: str
    kind: str
    icmp: int
    icmp_name: str
    errors: tuple[int, ...]
    replies: tuple[int, ...]
    quoted_sender: int
    quoted_receiver: int
    length: int


FAMILIES = (
    Family(4, "ip", "ipv4_addr", ICMP, "icmp", (3, 11, 12), (0, 14), 160, 192, 32),
    Family(6, "ip6", "ipv6_addr", ICMPV6, "icmpv6", (1, 2, 3, 4), (129,), 128, 256, 128),
)


class Side(NamedTuple):
    """One direction of one IP version at one tap: the names of its sets, and where the card's end is in a packet."""

    family: Family
    direction: Direction
    tap: str

    def named(self, what: str) -> str:
        return set_name(what, self.family.version, self.tap)

    @property
    def ends(self) -> tuple[str, str]:
        """The card's and the peer's."""
        return ("s", "d") if self.direction is Direction.OUT else ("d", "s")

    @property
    def ported(self) -> Any:
        own, peer = self.ends
        return concat(self._addr(own), meta("l4proto"), _port(own), self._addr(peer), _port(peer))

    @property
    def plain(self) -> Any:
        own, peer = self.ends
        return concat(self._addr(own), meta("l4proto"), self._addr(peer))

    @property
    def peer(self) -> Any:
        return self._addr(self.ends[1])

    @property
    def passing(self) -> Expression:
        return goto(f"pass{self.family.version}-{self.direction.value}-{self.tap}")

    def _addr(self, end: str) -> Any:
        return payload(self.family.header, f"{end}addr")


def _port(end: str) -> Any:
    return payload("th", f"{end}port")


def set_name(what: str, version: int, tap: str) -> str:
    return f"{what}{version}-{tap}"


def sets(tap: str) -> list[tuple[str, tuple[str, ...], int]]:
    """(name, type, size) of every set of a card."""
    found: list[tuple[str, tuple[str, ...], int]] = []
    for family in FAMILIES:
        ported: tuple[str, ...] = (family.kind, "inet_proto", "inet_service", family.kind, "inet_service")
        plain: tuple[str, ...] = (family.kind, "inet_proto", family.kind)
        for what, kinds, size in (
            ("open", ported, OPEN_SIZE),
            ("closing", ported, OPEN_SIZE),
            ("plain", plain, PLAIN_SIZE),
            ("parts", plain, PARTS_SIZE),
        ):
            found.append((set_name(what, family.version, tap), kinds, size))
    return found


def chains(tap: str, rules: Iterable[Rule], own: Sequence[Address], served_by: Sequence[Address]) -> dict[str, Rules]:
    """Every chain of a card by name. "out-<tap>" and "in-<tap>" are where what passed the card's other checks goes.

    own: the card's addresses, empty: not known. served_by: the gateways that alone may answer its DHCP requests;
    empty: anybody may.
    """
    wanted = list(rules)
    made: dict[str, Rules] = {}
    for direction in (Direction.OUT, Direction.IN):
        main: Rules = [[match(payload("ether", "type"), "arp"), ACCEPT]]
        main += _essential_out() if direction is Direction.OUT else _essential_in(served_by)
        for family in FAMILIES:
            side = Side(family, direction, tap)
            made[side.passing["goto"]["target"]] = _passing(side)
            main += [*_errors(side, own), *_parts(side), *_known(side)]
            for rule in wanted:
                if rule.direction is direction:
                    main += _begin(side, rule)
        made[f"{direction.value}-{tap}"] = [*main, [DROP]]
    return dict(sorted(made.items(), reverse=True))  # those that are gone to first


def _essential_out() -> Rules:
    return [
        [match(payload("udp", "sport"), 68), match(payload("udp", "dport"), 67), ACCEPT],
        [match(payload("udp", "sport"), 546), match(payload("udp", "dport"), 547), ACCEPT],
        [match(payload("icmpv6", "type"), any_of([131, 132, 133, 135, 136, 143])), ACCEPT],
    ]


def _essential_in(served_by: Sequence[Address]) -> Rules:
    server = [match(payload("ip", "saddr"), one) for one in of_version(served_by, 4)]
    link = match(payload("ip6", "saddr"), prefix("fe80::", 10))
    return [
        [*server, match(payload("udp", "sport"), 67), match(payload("udp", "dport"), 68), ACCEPT],
        [link, match(payload("udp", "sport"), 547), match(payload("udp", "dport"), 546), ACCEPT],
        [match(payload("ip6", "hoplimit"), 255), match(payload("icmpv6", "type"), any_of([134, 135, 136])), ACCEPT],
        [link, match(payload("icmpv6", "type"), 130), ACCEPT],
    ]


def _errors(side: Side, own: Sequence[Address]) -> Rules:
    """An ICMP error passes when the packet it quotes was the card's own, or was sent to it. Redirects never do."""
    family = side.family
    kind = payload(family.icmp_name, "type")
    wrong = match(kind, any_of(family.errors))
    offset = family.quoted_sender if side.direction is Direction.IN else family.quoted_receiver
    mine = [one for one in own if one.version == family.version]
    quoting: Rules = [[wrong, match(raw(offset, family.length), hex(int(one))), ACCEPT] for one in mine]
    if not own:
        quoting = [[wrong, {"limit": {"rate": 100, "per": "second", "burst": 100}}, ACCEPT]]
    redirect = 5 if family.version == 4 else 137
    return [*quoting, [wrong, DROP], [match(kind, redirect), DROP]]


def _parts(side: Side) -> Rules:
    """A later fragment has no ports: it follows a first one that passed."""
    later = _later_part(side.family)
    return [[later, match(side.plain, f"@{side.named('parts')}"), ACCEPT], [later, DROP]]


def _passing(side: Side) -> Rules:
    return [[_more_parts(side.family), remember(side.named("parts"), side.plain, PARTS_S)], [ACCEPT]]


def _later_part(family: Family) -> Expression:
    if family.version == 4:
        return match(masked(payload("ip", "frag-off"), 0x1FFF), 0, "!=")
    return match({"exthdr": {"name": "frag", "field": "frag-off"}}, 0, "!=")


def _more_parts(family: Family) -> Expression:
    if family.version == 4:
        return match(masked(payload("ip", "frag-off"), 0x2000), 0, "!=")
    return match({"exthdr": {"name": "frag", "field": "more-fragments"}}, 1)


def _known(side: Side) -> Rules:
    """What belongs to a conversation. One that began to end stays short, whatever still passes of it.

    Each ICMP request is a beginning of its own, so that being asked by somebody does not let one ask back.
    """
    opened, closing, plain = side.named("open"), side.named("closing"), side.named("plain")
    is_open, is_closing = match(side.ported, f"@{opened}"), match(side.ported, f"@{closing}")
    is_plain = match(side.plain, f"@{plain}")
    reply = match(payload(side.family.icmp_name, "type"), any_of(side.family.replies))
    shorten = [remember(opened, side.ported, TCP_CLOSING_S), remember(closing, side.ported, TCP_CLOSING_S)]
    return [
        [_flags("syn"), is_open, remember(opened, side.ported, NEW_S), forget(closing, side.ported), side.passing],
        [_flags("fin", "rst"), is_open, *shorten, side.passing],
        [_protocol(TCP), is_closing, *shorten, side.passing],
        [_protocol(TCP), is_open, remember(opened, side.ported, TCP_S), side.passing],
        [_protocol(UDP), is_open, remember(opened, side.ported, UDP_S), side.passing],
        [reply, is_plain, remember(plain, side.plain, ICMP_S), side.passing],
        [_protocol(side.family.icmp, "!="), is_plain, remember(plain, side.plain, OTHER_S), side.passing],
    ]


def _begin(side: Side, rule: Rule) -> Rules:
    """What a rule lets begin; nothing when it speaks of the other IP version, or of a group that is not compiled."""
    peers = _peers(side, rule)
    if peers is None:
        return []
    ports = _ports(rule)
    ported = [
        [*peers, _protocol(number), *ports, remember(side.named("open"), side.ported, NEW_S), side.passing]
        for number in (TCP, UDP)
        if rule.protocol in (Protocol.ANY, Protocol.TCP if number == TCP else Protocol.UDP)
    ]
    recall = remember(side.named("plain"), side.plain, NEW_S)
    if rule.protocol is Protocol.ICMP:
        return [[*peers, _protocol(side.family.icmp), recall, side.passing]]
    if rule.protocol is Protocol.ANY:
        other = match(meta("l4proto"), any_of([TCP, UDP]), "!=")
        return [*ported, [*peers, other, recall, side.passing]]
    return ported


def _peers(side: Side, rule: Rule) -> list[Expression] | None:
    if rule.cidr:
        network = subnet(rule.cidr, "cidr")
        if network.version != side.family.version:
            return None
        if network.prefixlen == 0:
            return [match(meta("protocol"), side.family.header)]
        return [match(side.peer, prefix(str(network.network_address), network.prefixlen))]
    return None if rule.group_id else [match(meta("protocol"), side.family.header)]


def _ports(rule: Rule) -> list[Expression]:
    if not rule.port_first or rule.protocol not in NUMBER:
        return []
    last = rule.port_last or rule.port_first
    return [match(payload("th", "dport"), {"range": [rule.port_first, last]})]


def _flags(*names: str) -> Expression:
    return match(payload("tcp", "flags"), list(names), "in")


def _protocol(number: int, op: str = "==") -> Expression:
    return match(meta("l4proto"), number, op)
