"""What every test may use."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """asyncio alone: the product runs on nothing else."""
    return "asyncio"
