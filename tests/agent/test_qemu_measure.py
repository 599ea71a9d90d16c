"""What a machine holds of its memory, read from the kernel's account of its mappings; and who may be measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.agent.drivers.qemu.measure import used_of
from novacron.errors import NotFound, StaleGeneration
from novacron.model.machine import MachineReport, MachineSpec
from novacron.model.prediction import Measurement
from novacron.testing.hand_clock import HandClock
from novacron.testing.sim_cluster import SimCluster
from novacron.wire.agent import Start
from novacron.wire.moving import Measure

MIB = 1 << 20
SMAPS = """\
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Size:             262144 kB
KernelPageSize:        4 kB
Rss:               90112 kB
Pss:               90112 kB
7f0020000000-7f0020200000 rw-p 00000000 00:00 0
Size:               2048 kB
Rss:                2048 kB
VmFlags: rd wr mr mw me ac sd
7f0030000000-7f0070000000 rw-s 00000000 00:01 7 /memfd:x
Size:            1048576 kB
Rss:              524288 kB
"""


@pytest.mark.parametrize(
    ("memory_mib", "used_mib"),
    [(256, 88), (1024, 512), (512, 512)],  # the last: there is no such mapping, and nothing is promised
)
def test_only_the_mapping_of_its_size_counts(memory_mib: int, used_mib: int) -> None:
    assert used_of(SMAPS, memory_mib * MIB) == used_mib * MIB


def test_what_cannot_be_read_is_taken_for_all_of_it() -> None:
    for text in ("", "Rss: 5 kB", "garbage\0\n" * 10, "Size: 99999999999999999999 kB\nRss: 1 kB"):
        assert used_of(text, 64 * MIB) == 64 * MIB


VM = "01890000-0000-7000-8000-000000000001"


@pytest.mark.anyio
async def test_the_verb_answers_for_what_is_the_nodes_own_under_that_ownership(tmp_path: Path) -> None:
    cluster = SimCluster(tmp_path, HandClock(), ["a", "b"])
    await cluster.start()
    try:
        a, b = cluster["a"].node_id, cluster["b"].node_id
        spec = MachineSpec(vm_id=VM, generation=2, vcpus=1, memory_mib=64)
        await cluster.call(a, Start(spec=spec), MachineReport, deadline_s=5)
        seen = await cluster.call(a, Measure(vm_id=VM, generation=2), Measurement, deadline_s=5)
        assert seen.memory_bytes == 64 * MIB
        with pytest.raises(StaleGeneration):
            await cluster.call(a, Measure(vm_id=VM, generation=1), Measurement, deadline_s=5)
        with pytest.raises(NotFound):
            await cluster.call(b, Measure(vm_id=VM, generation=2), Measurement, deadline_s=5)
    finally:
        await cluster.stop()
