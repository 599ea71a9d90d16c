"""What may pass each port of our bridges, as nftables rules: no strange senders, no strange servers. Pure.

Every tap and every tunnel has a chain for each direction, found by its name in a map; a tap without is cut off.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from novacron.agent.network import conversations
from novacron.agent.network.grammar import (
    DROP,
    Command,
    Expression,
    Table,
    any_of,
    goto,
    masked,
    match,
    meta,
    payload,
    raw,
)
from novacron.agent.network.names import TAPS
from novacron.agent.network.subnets import Address, link_local, of_version
from novacron.model.network import PortFilter

TABLE = Table("bridge", "novacron")
BEFORE_ALL = -300
_NOBODY4, _NOBODY6 = "0.0.0.0", "::"  # noqa: S104  (a sender without address)
_SOLICIT, _ADVERTISE, _ROUTER_SOLICIT, _ROUTER, _REDIRECT, _REPORT = 135, 136, 133, 134, 137, 143
_TARGET = raw(64, 128)  # of a neighbour solicitation or advertisement

Rules = list[list[Expression]]


def base() -> list[Command]:
    """The table, its maps and the two chains the kernel enters."""
    made = [TABLE.make(), TABLE.verdicts("from"), TABLE.verdicts("to")]
    for name, key, table in (("prerouting", "iifname", "from"), ("postrouting", "oifname", "to")):
        rules = [
            [{"vmap": {"key": meta(key), "data": f"@{table}"}}],
            [match(meta(key), f"{TAPS}*"), DROP],
        ]
        made += TABLE.hooked(name, name, BEFORE_ALL, rules)
    return made


def nothing() -> list[Command]:
    """The table goes, with all that is in it."""
    return [TABLE.make(), TABLE.delete()]


def port(
    tap: str,
    mac: str,
    wanted: PortFilter,
    *,
    own: Sequence[Address],
    checked: bool,
    served_by: Sequence[Address],
    present: Collection[str],
) -> list[Command]:
    """The whole filter of a tap, in place of any before it; conversations go on.

    own: the card's addresses; checked: whether it may send from no other. served_by: the gateways that answer DHCP on
    this network. present: names of the sets there are now.
    """
    made = base()
    mine = conversations.sets(tap)
    leave_from: list[Expression] = []
    leave_to: list[Expression] = []
    if wanted.stateful:
        made += [TABLE.memory(*one) for one in mine if one[0] not in present]
        known = own if checked else ()
        for name, rules in conversations.chains(tap, wanted.rules, known, served_by).items():
            made += TABLE.chain(name, rules)
        leave_from, leave_to = [goto(f"out-{tap}")], [goto(f"in-{tap}")]
    sender = _sender(mac, own, checked) if wanted.anti_spoofing else []
    receiver = _receiver(mac) if wanted.anti_spoofing else []
    made += TABLE.chain(f"from-{tap}", [*sender, *([leave_from] if leave_from else [])])
    made += TABLE.chain(f"to-{tap}", [*receiver, *([leave_to] if leave_to else [])])
    made += [TABLE.send("from", tap, f"from-{tap}"), TABLE.send("to", tap, f"to-{tap}")]
    if not wanted.stateful:
        made += _without_conversations(tap, present)
    return made


def tunnel(name: str, gateways: Sequence[Address], mac: str, *, managed: bool) -> list[Command]:
    """A tunnel carries nothing of what every node does for itself: its gateway's addresses and, if managed, DHCP."""
    rules = _gateways(gateways, mac)
    if managed:
        rules += [
            [match(payload("udp", "dport"), any_of([67, 68, 546, 547])), DROP],
            [match(payload("icmpv6", "type"), any_of([_ROUTER_SOLICIT, _ROUTER])), DROP],
        ]
    made = base()
    for way in ("from", "to"):
        made += [*TABLE.chain(f"{way}-{name}", rules), TABLE.send(way, name, f"{way}-{name}")]
    return made


def without(interface: str, present: Collection[str]) -> list[Command]:
    """Take away all about a tap or a tunnel, whether it is there or not."""
    made = base()
    for way in ("from", "to"):
        chain = f"{way}-{interface}"
        made += [*TABLE.chain(chain), TABLE.send(way, interface, chain), TABLE.unsend(way, interface)]
        made += TABLE.drop_chain(chain)
    return [*made, *_without_conversations(interface, present)]


def _without_conversations(tap: str, present: Collection[str]) -> list[Command]:
    names = list(conversations.chains(tap, (), (), ()))
    made = [command for name in names for command in TABLE.chain(name)]
    made += [command for name in names for command in TABLE.drop_chain(name)]
    return made + [TABLE.drop_set(name) for name, _, _ in conversations.sets(tap) if name in present]


def _sender(mac: str, own: Sequence[Address], checked: bool) -> Rules:
    """What may never come from a card."""
    rules = [
        [match(payload("ether", "saddr"), mac, "!="), DROP],
        [match(payload("ether", "type"), any_of(["ip", "arp", "ip6"]), "!="), DROP],
        [match(payload("arp", "saddr ether"), mac, "!="), DROP],
        [match(payload("udp", "sport"), any_of([67, 547])), DROP],
        [match(payload("udp", "dport"), any_of([68, 546])), DROP],
        [match(payload("icmpv6", "type"), any_of([_ROUTER, _REDIRECT])), DROP],
    ]
    return [*rules, *_addresses4(own), *_addresses6(mac, own)] if checked else rules


def _addresses4(own: Sequence[Address]) -> Rules:
    allowed = any_of([*of_version(own, 4), _NOBODY4])
    nobody = match(payload("ip", "saddr"), _NOBODY4)
    return [
        [match(payload("arp", "saddr ip"), allowed, "!="), DROP],
        [match(payload("ip", "saddr"), allowed, "!="), DROP],
        [nobody, match(meta("l4proto"), conversations.UDP, "!="), DROP],
        [nobody, match(payload("udp", "dport"), 67, "!="), DROP],
    ]


def _addresses6(mac: str, own: Sequence[Address]) -> Rules:
    mine = [one for one in (*own, link_local(mac)) if one.version == 6]
    nobody = match(payload("ip6", "saddr"), _NOBODY6)
    others = [match(_TARGET, hex(int(one)), "!=") for one in mine]
    return [
        [match(payload("ip6", "saddr"), any_of([*map(str, mine), _NOBODY6]), "!="), DROP],
        [nobody, match(meta("l4proto"), conversations.ICMPV6, "!="), DROP],
        [nobody, match(payload("icmpv6", "type"), any_of([_ROUTER_SOLICIT, _SOLICIT, _REPORT]), "!="), DROP],
        [match(payload("icmpv6", "type"), _ADVERTISE), *others, DROP],
    ]


def _receiver(mac: str) -> Rules:
    """Frames to somebody else are none of its business, nor what is said in its name when it has moved here."""
    single = match(masked(payload("ether", "daddr"), "01:00:00:00:00:00"), "00:00:00:00:00:00")
    return [
        [single, match(payload("ether", "daddr"), mac, "!="), DROP],
        [match(payload("ether", "saddr"), mac), DROP],
    ]


def _gateways(gateways: Sequence[Address], mac: str) -> Rules:
    rules: Rules = []
    for one in of_version(gateways, 4):
        rules += [[match(payload("arp", field), one), DROP] for field in ("saddr ip", "daddr ip")]
    for target in [*(one for one in gateways if one.version == 6), *([link_local(mac)] if gateways else [])]:
        asked = match(payload("icmpv6", "type"), any_of([_SOLICIT, _ADVERTISE]))
        rules.append([asked, match(_TARGET, hex(int(target))), DROP])
    return rules
