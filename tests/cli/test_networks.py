"""`novacron network`, `security-group` and `vm nic`: what they send, and what they show."""

from __future__ import annotations

import json

import pytest

from novacron.cli.rule import read_rule, rule_words
from novacron.client.security_groups import Rule
from tests.cli.conftest import Run
from tests.client.control_room import (
    GROUP_ID,
    NETWORK_ID,
    NODE_ID,
    VM_ID,
    ControlRoom,
    network,
    said,
    security_group,
    vm,
)

CARD = {
    "id": NODE_ID,
    "mac": "52:4e:43:00:00:01",
    "network": "overlay",
    "network_id": NETWORK_ID,
    "net": "web",
    "addresses": ["10.20.0.2"],
    "security_groups": [GROUP_ID],
}


def test_create_network_sends_what_was_said(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/networks", said(network(), 201))
    line = "network create web --ipv4 10.20.0.0/24 --mode nat --dns 9.9.9.9 --label a=b"
    assert run(line).stdout == "web: 10.20.0.0/24 and fd20::/64, nat, VNI 4096\n"
    assert json.loads(room.bodies[0]) == {
        "name": "web",
        "ipv4": "10.20.0.0/24",
        "mode": "nat",
        "dns": ["9.9.9.9"],
        "labels": {"a": "b"},
    }


def test_networks_are_listed_and_shown(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/networks", said({"items": [network()], "next_cursor": None}))
    room.on("GET", "/networks/web", said(network()))
    assert "web   10.20.0.0/24  fd20::/64  nat   managed     4096  5m" in run("network list").stdout
    shown = run("network show web").stdout
    assert "10.20.0.1, fd20::1" in shown
    assert "9.9.9.9" in shown


def test_update_network_sends_the_change_with_the_revision(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/networks/web", said(network(labels={"a": "b", "c": "d"})))
    room.on("PATCH", "/networks/web", said(network(mode="routed")))
    run("network update web --mode routed --no-dns --remove-label a")
    assert json.loads(room.bodies[-1]) == {"mode": "routed", "dns": [], "labels": {"c": "d"}}
    assert room.asked[-1].headers["if-match"] == '"50"'
    assert run("network update web").exit_code == 2


def test_delete_network(room: ControlRoom, run: Run) -> None:
    room.on("DELETE", "/networks/web", said(None, 204))
    assert run("network delete web --yes").stdout == "web: deleted\n"


def test_create_group_sends_its_rules(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/security_groups", said(security_group(), 201))
    line = "security-group create web --rule in,tcp,port=443 --rule in,udp,port=5000-5010,group=db --rule out"
    assert run(line).stdout == "web: 2 rules\n"
    sent = json.loads(room.bodies[0])["rules"]
    assert [(one["direction"], one["protocol"], one["port_first"], one["port_last"], one["group"]) for one in sent] == [
        ("in", "tcp", 443, 443, None),
        ("in", "udp", 5000, 5010, "db"),
        ("out", "any", 0, 0, None),
    ]


def test_rules_are_added_and_removed_by_the_words_that_are_shown(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/security_groups/web", said(security_group()))
    room.on("GET", f"/security_groups/{GROUP_ID}", said(security_group()))
    room.on("PATCH", "/security_groups/web", said(security_group()))
    shown = run("security-group show web").stdout
    assert "in,tcp,port=443\n" in shown
    assert "in,group=web\n" in shown
    run("security-group rule add web out in,tcp,port=443")
    assert len(json.loads(room.bodies[-1])["rules"]) == 3  # one of the two was there
    assert room.asked[-1].headers["if-match"] == '"60"'
    run("security-group rule remove web in,group=web")
    assert [one["protocol"] for one in json.loads(room.bodies[-1])["rules"]] == ["tcp"]
    missing = run("security-group rule remove web out")
    assert missing.exit_code == 3
    assert "no such rule" in missing.stderr


@pytest.mark.parametrize("text", ["in", "out,icmp", "in,tcp,port=22,cidr=192.0.2.0/24", "in,udp,port=1-65535"])
def test_a_rule_is_shown_as_it_is_read(text: str) -> None:
    assert rule_words(Rule(**read_rule(text)), {}) == text


@pytest.mark.parametrize(
    "text", ["", "tcp", "in,out", "in,port=", "in,port=0", "in,port=70000", "in,port=a", "in,what=1"]
)
def test_a_rule_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_rule(text)


def test_a_vm_is_created_on_a_network(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms", said(vm(nics=[CARD]), 202))
    run("vm create web-1 --image tiny --nic net=web,ip=10.20.0.9,ip=fd20::9,sg=a,sg=b,no-anti-spoofing")
    assert json.loads(room.bodies[0])["nics"] == [
        {
            "network": "overlay",
            "net": "web",
            "addresses": ["10.20.0.9", "fd20::9"],
            "security_groups": ["a", "b"],
            "anti_spoofing": False,
        }
    ]
    room.on("GET", "/vms/web-1", said(vm(nics=[CARD])))
    assert "10.20.0.2 on network web" in run("vm show web-1").stdout


def test_cards_are_attached_changed_and_detached(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms/web-1/nics", said(vm(nics=[CARD])))
    room.on("GET", "/vms/web-1", said(vm(nics=[CARD])))
    room.on("PATCH", f"/vms/web-1/nics/{NODE_ID}", said(vm(nics=[CARD])))
    room.on("DELETE", f"/vms/web-1/nics/{NODE_ID}", said(vm(nics=[])))
    assert run("vm nic add web-1 net=web,sg=a").stdout == "web-1: 1 network card\n"
    assert json.loads(room.bodies[-1]) == {"network": "overlay", "net": "web", "security_groups": ["a"]}
    run("vm nic update web-1 10.20.0.2 --sg a --sg b")
    assert json.loads(room.bodies[-1]) == {"security_groups": ["a", "b"]}
    run("vm nic update web-1 52:4E:43:00:00:01 --no-sg --no-anti-spoofing")
    assert json.loads(room.bodies[-1]) == {"security_groups": [], "anti_spoofing": False}
    assert run("vm nic update web-1 10.20.0.2").exit_code == 2
    assert run(f"vm nic remove web-1 {NODE_ID}").stdout == "web-1: 0 network cards\n"
    assert run("vm nic remove web-1 10.9.9.9").exit_code == 3
    assert VM_ID not in room.asked[-1].url.path
