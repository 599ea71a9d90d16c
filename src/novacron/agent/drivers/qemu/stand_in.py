"""A stand-in for a target that is gone: it lets a source out of a post-copy whose link is broken.

QEMU (7.2) waits for such a link for ever: cancelled without one, it never comes to its end. So it gets one, to us, who
say in its own words that nothing has been received yet, which for a target that never ran is all there is to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator

from novacron.agent.drivers.qemu import status
from novacron.agent.drivers.qemu.machine import Machine
from novacron.errors import DeadlineExceeded, MonitorFailed

DEADLINE_S = 10.0
LETS_GO_IN_S = 0.3
SLOW_BYTES_PER_S = 64 << 10
_LINK = "stand-in"
_PAGE_BITS = 12
_COMMAND = 8  # what the source says: this byte, then which command, then how many bytes belong to it
_RESUME, _RECEIVED = 9, 10
_SAYS_RECEIVED, _SAYS_RESUMED = 5, 6  # what its target answers: a message's kind and length, then its content
_END_OF_BITMAP = 0x0123456789ABCDEF
_BLOCK = re.compile(r"^\s*(\S+)\s+\d+ \S+\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s", re.MULTILINE)


async def cancel(machine: Machine) -> None:
    """Try to end a post-copy, whatever its link. It may be in one still, without a link: then try again.

    A cancel (7.2) pulls the link before it says that this is what it does: a QEMU that sends just then takes it for
    broken. So it is made to send next to nothing.

    :raise MonitorFailed: QEMU refuses. :raise DeadlineExceeded: it does not answer.
    """
    await machine.door().execute("migrate-set-parameters", {"max-postcopy-bandwidth": SLOW_BYTES_PER_S})
    if machine.migration_state not in status.BROKEN:
        await _cancel(machine)
        return
    await let_go(machine)
    async with _linked(machine):
        await _cancel(machine)


async def _cancel(machine: Machine) -> None:
    await machine.door().execute("migrate_cancel")
    ends = status.OVER | {"postcopy-paused"}
    await machine.until(lambda: machine.ended or machine.migration_state in ends, DEADLINE_S, "be cancelled")


async def let_go(machine: Machine) -> None:
    """Wait until both halves of a broken link are gone.

    QEMU says so when it has let go of the one it sends by. Of the other it does a moment later, says nothing, and (7.2)
    takes a new link that is there by then with it.
    """
    since_s = machine.clock.monotonic_s() - machine.seen_at_s.get("MIGRATION", 0.0)
    if since_s < LETS_GO_IN_S:
        await machine.clock.sleep(LETS_GO_IN_S - since_s)


@contextlib.asynccontextmanager
async def _linked(machine: Machine) -> AsyncIterator[None]:
    """Within it QEMU is in post-copy again, with us for its target.

    :raise MonitorFailed, DeadlineExceeded: QEMU does not go on, and stands as before.
    """
    monitor = machine.door()
    told = await monitor.ask(dict[str, str], "x-query-ramblock")
    pages = {name: int(used, 16) >> _PAGE_BITS for name, used in _BLOCK.findall(told["human-readable-text"])}
    await monitor.execute("migrate-set-parameters", {"tls-creds": ""})  # a pair of sockets, which nobody else hears
    ours, its = socket.socketpair()
    with its:
        await monitor.hand(_LINK, its.fileno())
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await monitor.execute("migrate", {"uri": f"fd:{_LINK}", "resume": True})
            await _answer(reader, writer, pages)
            await reader.readexactly(1)  # memory: only now does it no longer look whether it goes on
            await machine.until(lambda: machine.migration_state == "postcopy-active", DEADLINE_S, "go on")
        yield
    except TimeoutError:
        raise DeadlineExceeded(f"machine {machine.vm_id} does not take a stand-in for its target") from None
    except (OSError, EOFError, KeyError) as wrong:
        raise MonitorFailed(f"machine {machine.vm_id} does not take a stand-in for its target: {wrong!r}") from wrong
    finally:
        writer.transport.abort()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pages: dict[str, int]) -> None:
    """Until it asks to resume: say of each part of memory that nothing of it is here."""
    while True:
        kind, command, length = struct.unpack(">BHH", await reader.readexactly(5))
        content = await reader.readexactly(length)
        if kind != _COMMAND:
            raise EOFError(f"it says {kind}")
        if command == _RECEIVED:
            writer.write(struct.pack(">HH", _SAYS_RECEIVED, length) + content + _nothing(pages[content[1:].decode()]))
        elif command == _RESUME:
            writer.write(struct.pack(">HHI", _SAYS_RESUMED, 4, 1))
            await writer.drain()
            return
        await writer.drain()


def _nothing(pages: int) -> bytes:
    """The bitmap of what was received: in whole words, each page a zero."""
    size = (pages + 63) // 64 * 8
    return struct.pack(">Q", size) + bytes(size) + struct.pack(">Q", _END_OF_BITMAP)
