"""Somebody else changes our filters while the agent runs: they are set again at once, and it is said."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from novacron.agent.network import changes
from novacron.agent.network.changes import Changes
from novacron.agent.network.conversations import set_name
from novacron.agent.network.firewall import TABLE
from novacron.agent.network.names import overlay_tap
from novacron.model.network import Direction, PortFilter, Protocol, Rule
from tests.agent.overlay_nodes import Site, nic, place, site, spec, udp

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")
pytestmark = [pytest.mark.system, pytest.mark.root, needs_root]

HERE, THERE = nic(2), nic(3)
STRANGER = "52:54:00:00:00:77"
WARNING = "another program changed our filters; setting them again"


class Tended:
    """A node whose agent looks after its networks, and two guests of it."""

    def __init__(self, made: Site) -> None:
        self.node = made.nodes[0]
        self.node.do(self.node.overlay.adopt())
        self.left, self.right = made.plug(self.node, HERE, spec()), made.plug(self.node, THERE, spec())
        made.apply(made.state(1, place(HERE, self.node), place(THERE, self.node)))
        self._tending = self.node.call(lambda: asyncio.ensure_future(self.node.overlay.tend()))

    def nft(self, *words: str) -> str:
        return self.node.run("nft", *words)

    def filters(self) -> list[str]:
        """Everything that is in our tables, in whatever order it was made."""
        return sorted(self.nft("list", "ruleset").splitlines())

    def lies_are_heard(self) -> bool:
        """Whether a frame under another MAC and address comes through; a true one tells when to wait no more."""
        lied = False
        for _ in range(25):  # a card whose filter is lost may be cut off
            self.left.send(_said(b"a lie", mac=STRANGER, sender="10.5.0.99"))
            self.left.send(_said(b"the truth"))
            while (frame := self.right.hears(lambda frame: frame[12:14] == b"\x08\x00", within_s=0.2)) is not None:
                lied = lied or frame.endswith(b"a lie")
                if frame.endswith(b"the truth"):
                    return lied
        raise AssertionError("nothing is heard")

    def close(self) -> None:
        assert not self._tending.done()

        async def end() -> None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)

        self.node.do(end())


def _said(words: bytes, **lies: str) -> bytes:
    return udp(HERE, (THERE.mac, THERE.addresses[0]), (4000, 4001), words, **lies)


@pytest.fixture
def tended() -> Iterator[Tended]:
    with site(1) as made:
        one = Tended(made)
        try:
            yield one
        finally:
            one.close()


def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    "harm",
    [
        ("flush", "ruleset"),
        ("delete", "table", "bridge", "novacron"),
        ("flush", "chain", "bridge", "novacron", f"from-{overlay_tap(HERE.id)}"),
        ("flush", "map", "bridge", "novacron", "from"),
    ],
    ids=" ".join,
)
def test_filters_that_somebody_took_away_are_back_at_once_and_it_is_said(tended: Tended, harm: tuple[str, ...]) -> None:
    assert not tended.lies_are_heard()
    before = tended.filters()
    with capture_logs() as said:
        tended.nft(*harm)
        until(lambda: not tended.lies_are_heard())
        until(lambda: tended.filters() == before)
    (warning,) = [one for one in said if one["event"] == WARNING]
    assert (warning["log_level"], warning["by"]) == ("warning", ["nft"])
    with capture_logs() as said:  # a second time too
        tended.nft(*harm)
        until(lambda: any(one["event"] == WARNING for one in said))
        until(lambda: tended.filters() == before)


def test_a_security_group_and_the_way_out_are_back_too(tended: Tended) -> None:
    only_web = PortFilter(
        revision=2,
        addresses=THERE.addresses,
        stateful=True,
        rules=(Rule(direction=Direction.IN, protocol=Protocol.TCP, port_first=80),),
    )
    card = nic(3, filter=only_web)
    tended.node.do(tended.node.overlay.plug(card, None, [spec()]))
    before = tended.filters()
    tended.nft("flush", "ruleset")
    until(lambda: tended.filters() == before)
    tended.left.send(_said(b"not the web"))
    assert tended.right.hears(lambda frame: frame.endswith(b"not the web"), within_s=0.5) is None


def test_what_is_nobodys_harm_is_left_alone(tended: Tended) -> None:
    before = tended.filters()
    with capture_logs() as said:
        tended.nft("add", "table", "inet", "somebody")
        tended.nft("add", "table", "bridge", "somebody")
        other = nic(4)
        tended.node.do(tended.node.overlay.plug(other, None, [spec()]))
        tended.node.do(tended.node.overlay.unplug(other))
        tended.nft("delete", "table", "inet", "somebody")
        tended.nft("delete", "table", "bridge", "somebody")
        tended.nft("flush", "chain", "bridge", "novacron", f"from-{overlay_tap(HERE.id)}")  # told after all these
        until(lambda: tended.filters() == before)
    assert [one["by"] for one in said if one["event"] == WARNING] == [["nft"]]


def test_conversations_are_no_change(tended: Tended) -> None:
    anybody = (Rule(direction=Direction.IN), Rule(direction=Direction.OUT))
    card = nic(3, filter=PortFilter(revision=2, addresses=THERE.addresses, stateful=True, rules=anybody))
    tended.node.do(tended.node.overlay.plug(card, None, [spec()]))
    seen = Changes({TABLE})
    tended.node.call(seen.open)
    name = set_name("open", 4, overlay_tap(THERE.id))
    try:
        tended.left.send(_said(b"let us talk"))
        assert tended.right.hears(lambda frame: frame.endswith(b"let us talk"))
        assert f"{HERE.addresses[0]} . 4000" in tended.nft("list", "set", "bridge", "novacron", name)
        brought = f"{{ {THERE.addresses[0]} . udp . 1 . {HERE.addresses[0]} . 2 timeout 5s }}"
        tended.nft("add", "element", "bridge", "novacron", name, brought)
        assert seen.take() == []
        tended.nft("flush", "set", "bridge", "novacron", name)
        assert seen.take() == ["nft"]
    finally:
        seen.close()


def test_more_than_the_kernel_could_tell_counts_as_a_change(tended: Tended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "BUFFER_BYTES", 1)  # the kernel takes its smallest
    seen = Changes({TABLE})
    tended.node.call(seen.open)
    try:
        for number in range(20):
            tended.nft("add", "table", "inet", f"somebody{number}")
        assert changes.UNTOLD in seen.take()
        tended.nft("add", "table", "inet", "more")
        assert seen.take() == []
    finally:
        seen.close()


def test_what_cannot_be_read_is_nobodys() -> None:
    assert list(changes.messages(b"")) == []
    assert list(changes.messages(bytes(3))) == []
    assert list(changes.messages(bytes(64))) == []
    cut = b"\x40\0\0\0" + bytes([0, 10]) + bytes(10) + bytes([7, 0, 0, 0]) + b"\xff\xff\1\0nov"
    assert [one.table for one in changes.messages(cut)] == [(7, "nov")]
