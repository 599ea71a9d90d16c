"""Fixtures of the control plane's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.control.api import Api, an_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """An API on an empty store."""
    async with an_api(tmp_path) as made:
        yield made
