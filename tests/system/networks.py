"""Which network namespaces there are (root). The kernel gives the number of one that has ended to the next one at once,
whoever makes it; its cookie it gives once.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path

from novacron.lab.namespaces import enter, in_thread

SO_NETNS_COOKIE = 71


def cookie() -> int:
    """Of the network namespace the calling thread is in."""
    with socket.socket() as inside:
        return int.from_bytes(inside.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")


def of_processes(pids: Iterable[int]) -> set[int]:
    """Cookies of those that these processes are in, this machine's own left out."""
    return set(map(_cookie_at, (Path(f"/proc/{pid}/ns/net") for pid in pids))) - {cookie()}


def there_are() -> set[int]:
    """Cookies of those that some thread on this machine is in, or holds open."""
    found: dict[int, int] = {}  # by number, which no two have at one time
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            for place in (*process.glob("task/*/ns/net"), *process.glob("fd/*")):
                try:
                    if str(place.readlink()).startswith("net:[") and (number := place.stat().st_ino) not in found:
                        found[number] = _cookie_at(place)
                except OSError:
                    continue  # it has ended meanwhile
    return set(found.values())


def _cookie_at(place: Path) -> int:
    """:raise OSError: it is not there any more."""
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)

    def entered() -> int:
        enter(descriptor)
        return cookie()

    try:
        return in_thread(entered)
    finally:
        os.close(descriptor)
