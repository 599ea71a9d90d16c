"""What a node says of itself, from a /proc made for the test and from the real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from novacron.agent.host import Host, cpu, memory_mib
from novacron.errors import Unavailable
from novacron.model.machine import MachineReport, MachineStatus
from novacron.testing.hand_clock import START
from novacron.testing.sim_pool import POOL_ID, SimPool

pytestmark = pytest.mark.anyio

X86 = "processor\t: 0\nmodel name\t: Some CPU: 3 GHz\nflags\t\t: vmx fpu avx\n\nprocessor\t: 1\nmodel name\t: other\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd0c\n"


class GonePool(SimPool):
    async def pool_id(self) -> str:
        raise Unavailable("not mounted")

    def usage(self) -> tuple[int, int]:
        raise Unavailable("not mounted")


def made_proc(directory: Path) -> Path:
    (directory / "sys/kernel/random").mkdir(parents=True)
    (directory / "sys/kernel/random/boot_id").write_text("b00t\n")
    (directory / "cpuinfo").write_text(X86)
    (directory / "meminfo").write_text("MemTotal:  4194304 kB\nMemFree: 1 kB\nMemAvailable:  2097152 kB\n")
    (directory / "loadavg").write_text("0.75 0.50 0.25 1/100 4242\n")
    return directory


def test_cpus_of_two_architectures() -> None:
    assert cpu(X86) == ("Some CPU: 3 GHz", ("avx", "fpu", "vmx"))
    assert cpu(ARM) == ("0xd0c", ("asimd", "fp"))
    assert cpu("") == ("unknown", ())


def test_memory_is_read_by_name() -> None:
    assert memory_mib("MemTotal: 2048 kB\n", "MemTotal") == 2
    assert memory_mib("MemTotal: 2048 kB\n", "MemAvailable") == 0


async def test_facts_and_usage(tmp_path: Path) -> None:
    host = Host(SimPool(tmp_path), "192.0.2.1", made_proc(tmp_path / "proc"))
    facts = await host.facts(())
    assert (facts.cpu_model, facts.memory_mib, facts.boot_id) == ("Some CPU: 3 GHz", 4096, "b00t")
    assert (facts.pool_ids, facts.migration_address) == ((POOL_ID,), "192.0.2.1")
    assert facts.privileged is (os.geteuid() == 0)
    report = MachineReport(vm_id="v", generation=1, status=MachineStatus.RUNNING, since=START)
    paused = MachineReport(vm_id="w", generation=1, status=MachineStatus.PAUSED, since=START)
    usage = host.usage((report, paused))
    assert (usage.memory_available_mib, usage.load_1m, usage.machines_running) == (2048, 0.75, 1)
    assert usage.pool_size_bytes == 1 << 40


async def test_a_pool_that_is_not_mounted_does_not_silence_the_node(tmp_path: Path) -> None:
    host = Host(GonePool(tmp_path), "192.0.2.1", made_proc(tmp_path / "proc"))
    assert (await host.facts(())).pool_ids == ()
    assert host.usage(()).pool_size_bytes == 0


async def test_this_very_machine(tmp_path: Path) -> None:
    host = Host(SimPool(tmp_path), "127.0.0.1")
    facts = await host.facts(())
    assert facts.cpu_count == os.cpu_count()
    assert facts.memory_mib > 64
    assert 0 < host.usage(()).memory_available_mib <= facts.memory_mib
    assert len(facts.boot_id) == 36
    assert "fpu" in facts.cpu_flags or facts.architecture != "x86_64"
