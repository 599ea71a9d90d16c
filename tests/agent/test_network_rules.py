"""What networks decide without a kernel: what is remembered, forwarded, allowed, said and told. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from novacron.agent.network import ability, check, conversations, dhcp, firewall, flows, frames, gateway, memory, names
from novacron.agent.network.conversations import chains
from novacron.agent.network.forwarding import EVERYBODY, tables
from novacron.agent.network.memory import Known, Memory, Port, merged
from novacron.agent.network.subnets import address, link_local
from novacron.errors import InvalidInput, Reason, Unsupported
from novacron.model.network import (
    Addressing,
    Direction,
    Flow,
    Location,
    NetworkMode,
    NetworkSpec,
    NetworkState,
    PortFilter,
    Protocol,
    Rule,
)

NETWORK = "01890000-0000-7000-8000-00000000aa01"
SPEC = NetworkSpec(id=NETWORK, vni=77, ipv4="10.5.0.0/24", ipv6="fd05::/64")
MAC, TAP = "52:54:00:00:00:02", "nct-0123456789"
OWN = [address("10.5.0.2", ""), address("fd05::2", "")]


def located(generation: int, endpoint: str = "192.0.2.1", mac: str = MAC) -> Location:
    return Location(mac=mac, vm_id="v", generation=generation, endpoint=endpoint, addresses=("10.5.0.2",))


def state(revision: int, *locations: Location, **more: Any) -> NetworkState:
    return NetworkState(spec=SPEC, revision=revision, locations=locations, **more)


# -- what is remembered -------------------------------------------------------------------------------------------


def test_an_older_state_changes_nothing() -> None:
    known = merged(None, state(5, located(2)))
    assert merged(known, state(4, located(9), endpoints=("192.0.2.9",))) == known


def test_an_older_generation_never_replaces_a_newer_one_and_who_is_gone_is_gone() -> None:
    known = merged(None, state(1, located(3, "192.0.2.3")))
    assert merged(known, state(2, located(2, "192.0.2.2"))).locations[MAC].endpoint == "192.0.2.3"
    assert merged(known, state(2, located(3, "192.0.2.4"))).locations[MAC].endpoint == "192.0.2.4"
    assert merged(known, state(2)).locations == {}


@given(some.permutations([(revision, located(revision // 2, f"192.0.2.{revision}")) for revision in range(1, 9)]))
def test_whatever_order_states_come_in_the_newest_holds(order: list[tuple[int, Location]]) -> None:
    known: Known | None = None
    for revision, place in order:
        known = merged(known, state(revision, place))
    assert known is not None
    assert (known.revision, known.locations[MAC].endpoint) == (8, "192.0.2.8")


def test_a_card_keeps_the_newest_filter_heard_of() -> None:
    known = memory.plugged(Known(spec=SPEC), Port(nic_id="n", mac=MAC, filter=PortFilter(revision=3)))
    assert memory.plugged(known, Port(nic_id="n", mac=MAC, filter=PortFilter(revision=2))) == known
    heard = merged(known, state(1, filters={MAC: PortFilter(revision=2)}))
    assert heard.ports[MAC].filter.revision == 3
    assert merged(heard, state(2, filters={MAC: PortFilter(revision=4)})).ports[MAC].filter.revision == 4
    port = known.ports[MAC]
    assert memory.alike(port, Port(nic_id="n", mac=MAC, filter=PortFilter(revision=9)))
    assert not memory.alike(port, Port(nic_id="n", mac=MAC, filter=PortFilter(revision=3, stateful=True)))
    assert not memory.alike(port, None)
    assert memory.unplugged(known, MAC).ports == {}


def test_files_come_back_and_a_broken_one_bars_no_other(tmp_path: Path) -> None:
    files = Memory(tmp_path / "networks")
    assert files.read() == {}
    known = memory.plugged(merged(None, state(1, located(1))), Port(nic_id="n", mac=MAC))
    files.write(known)
    (tmp_path / "networks" / f"{NETWORK[:-1]}2.json").write_text("{")
    assert files.read() == {NETWORK: known}
    for _ in range(2):
        files.remove(NETWORK)
    assert files.read() == {}


# -- where frames go ----------------------------------------------------------------------------------------------


def test_tables_hold_one_place_for_each_card() -> None:
    here, there = "192.0.2.1", "192.0.2.2"
    other = located(1, there, "52:54:00:00:00:03")
    made = tables(NETWORK, here, (here, there), [located(1), other], {MAC: TAP}, neighbourly=True)
    probe = names.probe_mac(NETWORK, there)
    assert made.behind == {(EVERYBODY, there), (other.mac, there), (probe, there)}
    assert made.remote == {other.mac}
    assert made.local == {MAC: TAP}
    assert made.neighbours == {("10.5.0.2", MAC), ("10.5.0.2", other.mac)}
    alone = tables(NETWORK, here, (here,), [located(1)], {}, neighbourly=False)
    assert (alone.behind, alone.remote, dict(alone.local), alone.neighbours) == (set(), set(), {}, set())


def test_names_fit_the_kernel_and_macs_are_nobodys() -> None:
    made = [names.bridge_name(NETWORK), names.tunnel_name(NETWORK), names.overlay_tap("n")]
    assert all(len(name) <= 15 for name in made)
    assert len(set(made)) == 3
    for mac in (names.gateway_mac(NETWORK), names.probe_mac(NETWORK, "192.0.2.1")):
        assert re.fullmatch(r"02:4e(:[0-9a-f]{2}){4}", mac), "locally administered, of one card"


def test_a_gateway_is_where_it_is_needed() -> None:
    for mode in NetworkMode:
        for addressing in Addressing:
            spec = msgspec.structs.replace(SPEC, mode=mode, addressing=addressing)
            wanted = mode is not NetworkMode.ISOLATED or addressing is Addressing.MANAGED
            assert names.has_gateway(spec) is wanted


# -- what may pass ------------------------------------------------------------------------------------------------


def text(rules: Any) -> str:
    return json.dumps(rules)


def begins(*rules: Rule) -> dict[str, list[Any]]:
    """What the rules add to a card's chains."""
    without, having = chains(TAP, (), OWN, ()), chains(TAP, rules, OWN, ())
    return {name: [rule for rule in having[name] if rule not in without[name]] for name in having}


def test_nothing_begins_without_a_rule_and_the_last_word_is_no() -> None:
    made = chains(TAP, (), OWN, ())
    for name in (f"in-{TAP}", f"out-{TAP}"):
        assert made[name][-1] == [{"drop": None}]
    assert not any(begins().values())


@pytest.mark.parametrize(
    ("rule", "inward", "outward"),
    [
        (Rule(direction=Direction.IN), 6, 0),
        (Rule(direction=Direction.OUT, protocol=Protocol.TCP), 0, 2),
        (Rule(direction=Direction.IN, protocol=Protocol.ICMP, cidr="10.0.0.0/8"), 1, 0),
        (Rule(direction=Direction.IN, protocol=Protocol.UDP, cidr="fd05::/64"), 1, 0),
        (Rule(direction=Direction.IN, protocol=Protocol.TCP, cidr="0.0.0.0/0"), 1, 0),
        (Rule(direction=Direction.IN, group_id="g"), 0, 0),
    ],
)
def test_a_rule_becomes_what_it_says(rule: Rule, inward: int, outward: int) -> None:
    made = begins(rule)
    assert (len(made[f"in-{TAP}"]), len(made[f"out-{TAP}"])) == (inward, outward)


def test_a_rules_ports_are_those_asked_for() -> None:
    ((rule, _),) = [
        begins(Rule(direction=Direction.OUT, protocol=Protocol.TCP, port_first=80, port_last=90))[f"out-{TAP}"]
    ]
    assert {
        "match": {"op": "==", "left": {"payload": {"protocol": "th", "field": "dport"}}, "right": {"range": [80, 90]}}
    } in rule
    one = begins(Rule(direction=Direction.OUT, protocol=Protocol.UDP, port_first=53))[f"out-{TAP}"]
    assert '"range": [53, 53]' in text(one)


def test_both_directions_look_for_the_same_key() -> None:
    made = chains(TAP, (), OWN, ())
    own_first = {"out": '"saddr"', "in": '"daddr"'}
    for direction, end in own_first.items():
        keys = re.findall(
            r'"concat": \[\{"payload": \{"protocol": "ip6?", "field": ("\w+")', text(made[f"{direction}-{TAP}"])
        )
        assert set(keys) == {end}


def test_a_filter_is_whole_before_anything_is_sent_there() -> None:
    wanted = PortFilter(addresses=("10.5.0.2",), stateful=True)
    made = firewall.port(TAP, MAC, wanted, own=OWN, checked=True, served_by=(), present=())
    chains_at = [
        at for at, one in enumerate(made) if "chain" in one.get("add", {}) and TAP in one["add"]["chain"]["name"]
    ]
    sends_at = [at for at, one in enumerate(made) if "element" in one.get("add", {})]
    assert max(chains_at) < min(sends_at)
    again = firewall.port(
        TAP, MAC, wanted, own=OWN, checked=True, served_by=(), present={name for name, _, _ in conversations.sets(TAP)}
    )
    assert not any("set" in one.get("add", {}) for one in again), "what is remembered stays"
    for one in again:
        assert "delete" not in one


def test_who_is_not_checked_may_send_from_anywhere_but_in_no_other_cards_name() -> None:
    def made(*, checked: bool) -> str:
        return text(firewall.port(TAP, MAC, PortFilter(), own=OWN, checked=checked, served_by=(), present=()))

    assert '"right": {"set": ["10.5.0.2", "0.0.0.0"]}' in made(checked=True)
    assert '"right": {"set": ["10.5.0.2", "0.0.0.0"]}' not in made(checked=False)
    assert f'"op": "!=", "left": {{"payload": {{"protocol": "ether", "field": "saddr"}}}}, "right": "{MAC}"' in made(
        checked=False
    )


def test_a_card_of_a_checked_network_without_addresses_sends_none() -> None:
    made = text(firewall.port(TAP, MAC, PortFilter(), own=[], checked=True, served_by=(), present=()))
    assert '"right": {"set": ["0.0.0.0"]}' in made


def test_dhcp_crosses_a_tunnel_only_where_nobody_answers_it_here() -> None:
    gateways = [address("10.5.0.1", "")]
    assert "[67, 68, 546, 547]" in text(firewall.tunnel("ncx-0", gateways, "02:4e:00:00:00:01", managed=True))
    assert "[67, 68, 546, 547]" not in text(firewall.tunnel("ncx-0", (), "02:4e:00:00:00:01", managed=False))


def test_only_nat_hides_and_nothing_is_left_without_networks() -> None:
    for mode in NetworkMode:
        made = text(gateway.rules([gateway.Span(msgspec.structs.replace(SPEC, mode=mode), [address("192.0.2.1", "")])]))
        assert ("masquerade" in made) is (mode is NetworkMode.NAT)
    assert [list(one) for one in gateway.rules([])] == [["add"], ["delete"]]


# -- conversations as data ----------------------------------------------------------------------------------------


def flow(protocol: Protocol, own: tuple[str, int], peer: tuple[str, int], left_s: int, number: int = 0) -> Flow:
    return Flow(mac=MAC, protocol=protocol, address=own[0], port=own[1], peer_address=peer[0], peer_port=peer[1],
        left_s=left_s, number=number)  # fmt: skip


FLOWS = (
    flow(Protocol.TCP, ("10.5.0.2", 80), ("10.5.0.3", 5000), 7000),
    flow(Protocol.UDP, ("fd05::2", 53), ("fd05::3", 6000), 200),
    flow(Protocol.ICMP, ("10.5.0.2", 0), ("10.5.0.3", 0), 50),
    flow(Protocol.ICMP, ("fd05::2", 0), ("fd05::3", 0), 40),
    flow(Protocol.ANY, ("10.5.0.2", 0), ("10.5.0.3", 0), 30, 47),
)


def test_conversations_survive_their_journey() -> None:
    assert flows.exported(MAC, flows.imported(TAP, FLOWS)) == FLOWS


def test_a_flow_that_is_none_is_refused_and_too_many_are_cut() -> None:
    with pytest.raises(InvalidInput):
        flows.imported(TAP, [msgspec.structs.replace(FLOWS[0], address="; drop")])
    long = msgspec.structs.replace(FLOWS[0], left_s=1 << 40)
    ((element, *_),) = flows.imported(TAP, [long]).values()
    assert element["elem"]["timeout"] == conversations.TCP_S
    many = [msgspec.structs.replace(FLOWS[0], peer_port=number % 65536) for number in range(40_000)]
    held = flows.imported(TAP, many)
    assert [len(elements) for elements in held.values()] == [conversations.OPEN_SIZE]
    assert len(flows.exported(MAC, held)) == flows.MOST
    assert len(msgspec.json.encode(flows.exported(MAC, held))) < 4 << 20, "one frame of the line"


# -- what is said -------------------------------------------------------------------------------------------------


def test_link_local_addresses_are_made_as_kernels_do() -> None:
    assert str(link_local("52:54:00:12:34:56")) == "fe80::5054:ff:fe12:3456"


def test_announcements_say_all_there_is_to_say() -> None:
    rarp, request, reply, *neighbours = frames.announcements(MAC, OWN)
    assert (rarp[12:14], rarp[20:22]) == (b"\x80\x35", b"\0\3")
    assert (request[20:22], reply[20:22]) == (b"\0\1", b"\0\2")
    for frame in (request, reply):
        assert frame[28:32] == frame[38:42] == OWN[0].packed
    assert [frame[62:78] for frame in neighbours] == [OWN[1].packed, link_local(MAC).packed]
    for frame in neighbours:
        assert frame[54] == 136
        assert struct.unpack("!I", frame[58:62])[0] == 0x20000000, "it overrides"
        assert checks(frame)


@given(some.binary(max_size=64))
def test_checksums_check(data: bytes) -> None:
    summed = frames.checksum(data)
    padded = data + b"\0" * (len(data) % 2)
    assert frames.checksum(padded + struct.pack("!H", summed)) in (0, 0xFFFF)


@pytest.mark.parametrize("asked", OWN)
def test_a_question_is_answered_by_who_has_the_address_alone(asked: ipaddress.IPv4Address) -> None:
    answer = frames.announcements(MAC, [asked])[2 if asked.version == 4 else 1]
    assert frames.answers(answer, asked)
    for other in (
        frames.question(MAC, asked),
        frames.announcements(MAC, [asked + 1])[2 if asked.version == 4 else 1],
        b"",
    ):
        assert not frames.answers(other, asked)


def checks(frame: bytes) -> bool:
    pseudo = frame[22:54] + struct.pack("!II", len(frame) - 54, 58)
    return frames.checksum(pseudo + frame[54:]) == 0


# -- what servers and people are told -----------------------------------------------------------------------------


def test_no_address_reaches_dnsmasq_unread() -> None:
    with pytest.raises(InvalidInput):
        dhcp.hosts({MAC: ("10.5.0.2\nuser=root",)})
    with pytest.raises(InvalidInput):
        dhcp.settings(msgspec.structs.replace(SPEC, dns=("192.0.2.1\nuser=root",)), "ncb-0", "h", "p")
    assert "user=nobody" in dhcp.settings(SPEC, "ncb-0", "h", "p")


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {reason.code for reason in ability.missing(tmp_path, tmp_path)}
    assert "overlay.kernel" in codes
    monkeypatch.setattr(ability, "missing", lambda: [Reason("overlay.kernel", "no VXLAN")])
    with pytest.raises(Unsupported) as refused:
        ability.check()
    assert refused.value.reasons[0].code == "overlay.kernel"
    monkeypatch.undo()
    (tmp_path / "vxlan").mkdir()
    assert "overlay.kernel" not in {reason.code for reason in ability.missing(tmp_path, tmp_path)}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (state(1, located(1, "node-1")), "endpoint"),
        (state(1, located(1, mac="52:54:00:00:00:02\n")), "mac"),
        (state(1, endpoints=("192.0.2.1 ",)), "endpoints"),
        (state(1, filters={MAC: PortFilter(addresses=("all",))}), "addresses"),
        (state(1, filters={MAC: PortFilter(rules=(Rule(direction=Direction.IN, cidr="10.0.0.1/8"),))}), "cidr"),
        (
            state(1, filters={MAC: PortFilter(rules=(Rule(direction=Direction.IN, port_first=9, port_last=8),))}),
            "ports",
        ),
        *(
            (NetworkState(spec=msgspec.structs.replace(SPEC, **{field: value}), revision=1), field)
            for field, value in [("vni", 0), ("vni", 1 << 24), ("mtu", 1279), ("mtu", 65536), ("ipv4", "10.5.0.1/24")]
        ),
        (NetworkState(spec=msgspec.structs.replace(SPEC, id="../x"), revision=1), "network_id"),
        (NetworkState(spec=msgspec.structs.replace(SPEC, ipv4="10.5.0.0/31"), revision=1), "subnet"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wrong: NetworkState, field: str) -> None:
    check.check_state(state(1, located(1), filters={MAC: PortFilter(rules=(Rule(direction=Direction.IN),))}))
    with pytest.raises(InvalidInput) as refused:
        check.check_state(wrong)
    assert refused.value.reasons[0].subject == field
