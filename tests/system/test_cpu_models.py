"""What the table says of CPU models is what a real QEMU says of them, for every model it has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from novacron.agent.drivers.qemu.features import asked, locate
from novacron.clock import SystemClock
from novacron.model.cpu_models import flags_needed, known_models

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"),
]


def bare(flag: str) -> str:
    """QEMU writes avx512vnni and sse4.1 where Linux writes avx512_vnni and sse4_1."""
    return flag.replace("_", "").replace("-", "").replace(".", "")


async def test_each_model_needs_what_qemu_gives_it(tmp_path: Path) -> None:
    words = {bare(flag) for model in known_models() for flag in flags_needed(model) or ()}
    wrong, compared = {}, 0
    async with asked(locate("qemu-system-x86_64"), "tcg", tmp_path, SystemClock()) as monitor:
        for one in await monitor.ask(list[dict[str, Any]], "query-cpu-definitions"):
            needs = flags_needed(one["name"])
            if needs is None:
                continue
            model = {"type": "full", "model": {"name": one["name"]}}
            told = await monitor.ask(dict[str, Any], "query-cpu-model-expansion", model)
            gives = {bare(flag) for flag, value in told["model"]["props"].items() if value is True} & words
            compared += 1
            if gives != {bare(flag) for flag in needs}:
                wrong[one["name"]] = gives ^ {bare(flag) for flag in needs}
    assert wrong == {}
    assert compared > 50
