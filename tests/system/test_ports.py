"""Ports that tests are given: two processes never have the same, whether anybody listens or not."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import BLOCK, free_port, free_ports

pytestmark = pytest.mark.system


def test_no_other_process_is_given_ours() -> None:
    ours = set(free_ports(BLOCK // 2))
    assert len(ours) == BLOCK // 2
    code = f"from tests.ports import free_ports; print(*free_ports({BLOCK // 2}))"
    root = Path(__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True).stdout
    theirs = set(map(int, said.split()))
    assert len(theirs) == BLOCK // 2
    assert not ours & theirs


def test_one_that_is_taken_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        assert taken.getsockname()[1] not in free_ports(BLOCK - 1)
