"""Which cipher the two QEMUs of a migration agree on, read from what passes between them."""

from __future__ import annotations

import pytest

from novacron.model.migration import Goals, Tactics
from tests.system import rom_machine
from tests.system.rom_machine import needs_qemu
from tests.system.rom_move import Move, link

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]

HANDSHAKE, SERVER_HELLO = 0x16, 2
AES_128_GCM_SHA256 = bytes.fromhex("1301")
_SESSION = 43  # record 5, handshake 4, version 2, random 32


def cipher_of(opening: bytes) -> bytes:
    """The suite that a ServerHello names."""
    after_session = _SESSION + 1 + opening[_SESSION]
    return opening[after_session : after_session + 2]


async def test_a_stream_is_encrypted_by_what_processors_are_quick_at() -> None:
    async with rom_machine.hosts() as hosts, link() as wire:
        move = Move(hosts)
        to = await wire.lead_to(await move.prepare())
        assert (await move.send(to, Tactics(), Goals())).whole
        await move.take_over()
        await move.finish()
        answers = [seen for seen in wire.openings if seen[0] == HANDSHAKE and seen[5] == SERVER_HELLO]
        assert [cipher_of(seen) for seen in answers] == [AES_128_GCM_SHA256]
