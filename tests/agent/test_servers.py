"""Which servers a node keeps lines to: what it was given stays, what it learns comes and goes, one line to each."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.agent.servers import FILE, FORGOTTEN_AFTER_S, HOLD_S, Servers
from novacron.model.timing import STANDARD
from novacron.testing.hand_clock import HandClock
from novacron.wire.discovery import MAX_PLACES
from novacron.wire.membership import ServerAt, Terms

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = (f"https://s{number}.example.org:8470" for number in (1, 2, 3))
ALIAS = "https://192.0.2.1:8470"


def at(**places: str) -> tuple[ServerAt, ...]:
    return tuple(ServerAt(id=server_id, address=address) for server_id, address in places.items())


def terms(server_id: str, **places: str) -> Terms:
    return Terms(server_id=server_id, servers=(server_id,), timing=STANDARD, places=at(**places))


class Place:
    def __init__(self, state: Path, *given: str) -> None:
        self.clock = HandClock()
        self.file = state / FILE
        self.given = given
        self.servers = Servers(given, self.file, self.clock)

    async def again(self) -> Servers:
        """As after a restart of the agent."""
        await self.servers.save()
        return Servers(self.given, self.file, self.clock)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, ONE)


def test_a_server_tells_of_the_others(place: Place) -> None:
    place.servers.opened(ONE, terms("one", one=ONE, two=TWO))
    assert place.servers.changed.is_set()
    assert place.servers.wanted() == (ONE, TWO)
    place.servers.tell(at(one=ONE, two=TWO, three=THREE))
    assert place.servers.wanted() == (ONE, THREE, TWO)


async def test_a_restart_finds_what_was_learned(place: Place) -> None:
    place.servers.tell(at(two=TWO))
    place.servers.find("srv:x", [THREE])
    assert (await place.again()).wanted() == (ONE, THREE, TWO)
    assert place.file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"nonsense", b'{"told": 3}'])
async def test_a_damaged_file_is_learned_anew(place: Place, content: bytes) -> None:
    place.file.write_bytes(content)
    made = await place.again()
    assert made.wanted() == (ONE,)
    made.tell(at(two=TWO))
    await made.save()
    assert (await place.again()).wanted() == (ONE, TWO)


async def test_who_left_is_dropped_after_a_while_and_the_given_never(place: Place) -> None:
    place.servers.tell(at(two=TWO, three=THREE))
    await place.clock.advance(FORGOTTEN_AFTER_S - 1)
    place.servers.tell(at(two=TWO))
    assert place.servers.wanted() == (ONE, THREE, TWO)
    await place.clock.advance(2)
    place.servers.tell(at(two=TWO))
    assert place.servers.wanted() == (ONE, TWO)
    assert (await place.again()).wanted() == (ONE, TWO)


async def test_while_nobody_tells_anything_nobody_is_dropped(place: Place) -> None:
    place.servers.tell(at(two=TWO))
    await place.clock.advance(10 * FORGOTTEN_AFTER_S)
    assert place.servers.wanted() == (ONE, TWO)


async def test_one_to_which_a_line_is_open_has_not_left(place: Place) -> None:
    place.servers.tell(at(two=TWO))
    place.servers.opened(TWO, terms("two"))
    await place.clock.advance(2 * FORGOTTEN_AFTER_S)
    place.servers.tell(at(one=ONE))
    assert TWO in place.servers.wanted()


def test_a_server_that_moved_is_at_its_new_address_alone(place: Place) -> None:
    place.servers.tell(at(two=TWO))
    place.servers.tell(at(two=THREE))
    assert place.servers.wanted() == (ONE, THREE)


async def test_a_server_of_two_addresses_has_one_line_under_the_given_one(tmp_path: Path) -> None:
    place = Place(tmp_path, ALIAS)
    place.servers.tell(at(one=ONE))
    assert place.servers.wanted() == (ALIAS, ONE), "whose the given one is nobody knows yet"
    place.servers.opened(ALIAS, terms("one"))
    assert place.servers.wanted() == (ALIAS,)
    place.servers.closed(ALIAS)
    assert place.servers.wanted() == (ALIAS,), "it may be starting again"
    assert (await place.again()).wanted() == (ALIAS,)
    await place.clock.advance(HOLD_S + 1)
    assert place.servers.wanted() == (ALIAS, ONE)
    place.servers.opened(ONE, terms("one"))
    assert place.servers.wanted() == (ALIAS, ONE), "the given one leads nowhere now"


def test_a_server_that_took_the_address_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    place = Place(tmp_path, ALIAS)
    place.servers.opened(ALIAS, terms("one", one=ONE, two=TWO))
    place.servers.closed(ALIAS)
    place.servers.opened(ALIAS, terms("two"))
    assert place.servers.wanted() == (ALIAS, ONE)


def test_open_lines_are_asked_first(place: Place) -> None:
    place.servers.tell(at(two=TWO))
    place.servers.opened(TWO, None)
    assert place.servers.addresses() == (TWO, ONE)


def test_a_source_names_servers_in_place_of_those_it_named_before(place: Place) -> None:
    place.servers.find("srv:x", [TWO, THREE])
    place.servers.find("mdns:", [TWO])
    place.servers.find("srv:x", [THREE])
    assert place.servers.wanted() == (ONE, THREE, TWO)
    place.servers.find("mdns:", [])
    assert place.servers.wanted() == (ONE, THREE)


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:8470", "unix:/run/x", "https://s1", "https://u@s1:1", "https://s1:1/x", "", "https://:1"],
)
def test_only_places_over_tls_are_learned(place: Place, address: str) -> None:
    place.servers.tell(at(two=address))
    place.servers.find("srv:x", [address])
    assert place.servers.wanted() == (ONE,)


def test_one_word_names_so_many_at_most(place: Place) -> None:
    place.servers.tell(at(**{f"n{number}": f"https://n{number}:1" for number in range(MAX_PLACES + 5)}))
    assert len(place.servers.wanted()) == 1 + MAX_PLACES


async def test_a_node_that_has_not_joined_learns_nothing() -> None:
    servers = Servers(("unix:/run/novacron.sock",), None, HandClock())
    servers.opened("unix:/run/novacron.sock", terms("one", two=TWO))
    servers.find("srv:x", [THREE])
    await servers.save()
    assert servers.wanted() == ("unix:/run/novacron.sock",)
