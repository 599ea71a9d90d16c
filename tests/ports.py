"""TCP ports of loopback for what tests start: no two test processes are given the same, however many run at once."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import socket
from collections.abc import Iterator
from pathlib import Path

BLOCK = 128


def free_port() -> int:
    """One port; see `free_ports`."""
    (found,) = free_ports(1)
    return found


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now, this process's as long as it lives: also while what listened there is down.

    They lie below those from which the system gives, so that nobody gets one by chance.
    """
    low, number, _ = _block()
    in_turn = (low + place % BLOCK for place in number)
    return list(itertools.islice(filter(_is_free, itertools.islice(in_turn, BLOCK)), count))


@functools.cache
def _block() -> tuple[int, Iterator[int], socket.socket]:
    """The first port of this process's block, a counter, and what keeps others off: a name that ends with us."""
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    blocks = list(range(end // 2, end - BLOCK, BLOCK))
    random.SystemRandom().shuffle(blocks)  # a test that seeds the usual one must not choose for us
    for low in blocks:
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0novacron-test-ports-{low}")
        except OSError:
            name.close()
        else:
            return low, itertools.count(), name
    raise AssertionError("every block of ports is taken: other tests run")


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        return True
    return False
