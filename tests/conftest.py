"""What every test may use."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("house")

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell's children are deaf to it


@pytest.fixture
def anyio_backend() -> str:
    """asyncio alone: the product runs on nothing else."""
    return "asyncio"
