"""What other programs change of our nftables tables: the kernel tells of every transaction, and who made it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Collection, Iterator
from typing import NamedTuple

from novacron.agent.network.grammar import Table

UNTOLD = "?"
"""In place of a program: the kernel had more to tell than we took in."""

BUFFER_BYTES = 16 << 20
_NETLINK_NETFILTER, _GROUP = 12, 1 << 6  # NFNLGRP_NFTABLES
_SO_RCVBUFFORCE = 33
_NFTABLES, _NEW_ELEMENTS, _NEW_GENERATION = 10, 12, 15
_FAMILIES = {"inet": 1, "bridge": 7}
_HEADER = struct.Struct("=IBBHIIBBH")  # nlmsghdr, its type in two bytes, and nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")
_TABLE, _PROGRAM = 1, 3
_LONGEST = 1 << 16


class Message(NamedTuple):
    """One object of a transaction, or its end (`program`). table: (family, name). sender: the port that asked for it,
    which for a program with one such socket is its process id.
    """

    sender: int
    table: tuple[int, str] | None
    program: str | None


class Changes:
    """Of these tables. Nothing is heard before `open`, in whose network namespace it is."""

    def __init__(self, tables: Collection[Table]) -> None:
        self._tables = {(_FAMILIES[table.family], table.name) for table in tables}
        self._socket: socket.socket | None = None
        self._touched: set[int] = set()  # senders whose transaction has not ended yet
        self._by: list[str] = []
        self._told = asyncio.Event()

    def open(self) -> None:
        """:raise OSError: the kernel has no nftables, or lets us not hear of them."""
        self.close()
        heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
        try:
            heard.bind((0, _GROUP))
            with contextlib.suppress(PermissionError):  # then as large as an ordinary one
                heard.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
        except BaseException:
            heard.close()
            raise
        self._socket = heard

    def close(self) -> None:
        """Hear nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def heard(self) -> None:
        """Return when there may be something to take. Never, where nothing is heard."""
        loop, heard = asyncio.get_running_loop(), self._socket
        if heard is not None:
            loop.add_reader(heard, self._told.set)
        try:
            await self._told.wait()
        finally:
            self._told.clear()
            if heard is not None:
                loop.remove_reader(heard)

    def note(self, but: int = 0) -> None:
        """Take in what the kernel tells, for `take`. but: a process of ours, whose changes are no others'."""
        for datagram in self._datagrams():
            if datagram is None:
                self._touched.clear()
                self._by.append(UNTOLD)
            for message in messages(datagram or b""):
                if message.table in self._tables:
                    self._touched.add(message.sender)
                elif message.program is not None and message.sender in self._touched:
                    self._touched.discard(message.sender)
                    if message.sender != but:
                        self._by.append(message.program)
        if self._by:
            self._told.set()

    def take(self) -> list[str]:
        """Names of the programs that changed our tables since this was asked last, one for each time.

        What is only put into a set, as conversations are, takes nothing away and is no change.
        """
        self.note()
        by, self._by = self._by, []
        self._told.clear()
        return by

    def excuse(self) -> None:
        """What was lost up to now was about ourselves."""
        self._by = [program for program in self._by if program != UNTOLD]

    def _datagrams(self) -> Iterator[bytes | None]:
        """Those that wait; None: some were lost."""
        while self._socket is not None:
            try:
                yield self._socket.recv(_LONGEST)
            except BlockingIOError:
                return
            except OSError as wrong:
                if wrong.errno != errno.ENOBUFS:
                    raise
                yield None


def messages(datagram: bytes) -> Iterator[Message]:
    """What a datagram of the kernel's holds, but for elements that are put into a set. Pure."""
    while len(datagram) >= _HEADER.size:
        length, kind, subsystem, _, _, sender, family, _, _ = _HEADER.unpack_from(datagram)
        body, datagram = datagram[_HEADER.size : length], datagram[max((length + 3) & ~3, _HEADER.size) :]
        if subsystem != _NFTABLES or kind == _NEW_ELEMENTS:
            continue
        if kind == _NEW_GENERATION:
            yield Message(sender, None, _text(body, _PROGRAM))
        else:
            yield Message(sender, (family, _text(body, _TABLE)), None)


def _text(body: bytes, wanted: int) -> str:
    """The attribute of that number; empty: there is none."""
    while len(body) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(body)
        if kind == wanted:
            return body[_ATTRIBUTE.size : length].rstrip(b"\0").decode(errors="replace")
        body = body[max((length + 3) & ~3, _ATTRIBUTE.size) :]
    return ""
