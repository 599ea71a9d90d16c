"""Provisioning beside its floor: `python -m tests.bench.provision [--only import] [--rounds N] [--many N] [--json F]`.

Four questions, each asked of NovaCron and of the least that could do the same, turn by turn in one run:

    start    a VM from a cached image of 2 GiB: request → QEMU runs      floor: qemu-img create -b, a bare QEMU, cont
    clone    a volume of 1 GiB and one of 20 GiB, both full at the front  the same; the ratio says whether size counts
    import   a file of 1 GiB through the API, compared and inspected      floor: cp of the same file, fsync
    many     N small VMs at once on one node: do all answer?              reported: memory each, the agent's CPU share
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from novacron.agent.drivers.qemu.process import ENVIRONMENT
from novacron.client import images, templates, vms, volumes
from novacron.lab.lab import Lab, open_lab
from novacron.lab.rom import rom
from novacron.lab.screen import Screen
from novacron.model.image import FileRole
from tests.bench.floor import Monitor, template_of

MIB = 1 << 20
GIB = 1 << 30
IMAGE_BYTES = 2 * GIB
IMPORT_BYTES = GIB
START_GOAL_MS = 400.0
IMPORT_GOAL = 0.8
SMALL_MIB = 32
SLOWEST = 65535  # of the timer's divisors: 18 ticks a second
ANSWER_S = 300.0
QUESTIONS = ("start", "clone", "import", "many")

Figures = dict[str, Any]


async def bench(asked: frozenset[str], rounds: int, many: int, screen: Screen) -> Figures:
    """Those asked for, in order."""
    found: Figures = {}
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/var/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)
        one_by_one = {"start": start, "clone": clone, "import": imported}
        if asked & set(one_by_one):
            async with open_lab(path / "lab", nodes=1, bridged=False, say=screen.say) as lab:
                for name in [name for name in one_by_one if name in asked]:
                    found[name] = await one_by_one[name](lab, path, rounds, screen)
        if "many" in asked:
            async with open_lab(path / "many", nodes=1, bridged=False, say=screen.say) as lab:
                found["many"] = await crowd(lab, path, many, screen)
    return found


# -- start ---------------------------------------------------------------------------------------------------


async def start(lab: Lab, path: Path, rounds: int, screen: Screen) -> Figures:
    """Times in ms from the request until QEMU runs, and what the floor needs."""
    await _image(lab, path / "image", "big", IMAGE_BYTES)
    ours: list[float] = []
    floor: list[float] = []
    for number in range(rounds + 1):
        mine, vm = await _timed(lambda number=number: _boot(lab, f"start-{number}", "big"))  # type: ignore[misc]
        bare = await asyncio.to_thread(_bare, lab.path, vm)
        if number:  # the first warms caches for both
            ours.append(mine)
            floor.append(bare)
        await _gone(lab, vm)
        screen.say(f"start {number}: novacron {mine:.0f} ms, floor {bare:.0f} ms")
    difference = statistics.median(mine - bare for mine, bare in zip(ours, floor, strict=True))
    return {
        "novacron_ms": statistics.median(ours),
        "floor_ms": statistics.median(floor),
        "difference_ms": difference,
        "reached": difference <= START_GOAL_MS,
    }


async def _boot(lab: Lab, name: str, image: str) -> vms.Vm:
    made = await lab.client.do(vms.create(vms.VmCreate(name=name, image=image, memory_mib=128, nics=[])))
    return await lab.client.wait_vm(made.id, "running")


def _bare(directory: Path, vm: vms.Vm) -> float:
    """The same machine by hand: an overlay, QEMU with NovaCron's own words, cont."""
    template = template_of(vm.pid or 0)
    with tempfile.TemporaryDirectory(prefix="floor-", dir=directory) as folder:
        run_dir = Path(folder)
        os.chown(run_dir, template.uid, template.gid)
        listening = [_listen(run_dir / name) for name in ("monitor", "rescue")]
        numbers = iter([made.fileno() for made in listening])
        began = time.monotonic()
        volume = run_dir / "volume.qcow2"
        backing = directory / "pool" / "images" / vm.disks[0].backing_digest
        # fmt: off
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", str(backing), "-F", "raw", str(volume),
             str(vm.disks[0].size_bytes)], check=True,
        )
        # fmt: on
        os.chown(volume, template.uid, template.gid)
        argv = [_replaced(word, vm, volume, numbers) for word in template.argv]
        process = subprocess.Popen(
            argv, cwd=run_dir, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            pass_fds=[made.fileno() for made in listening], user=template.uid, group=template.gid, extra_groups=[],
        )  # fmt: skip
        try:
            for made in listening:
                made.close()
            monitor = Monitor(run_dir / "monitor")
            monitor.execute("cont")
            took_ms = (time.monotonic() - began) * 1e3
            monitor.close()
        finally:
            process.kill()
            process.wait()
    return took_ms


def _replaced(word: str, vm: vms.Vm, volume: Path, numbers: Any) -> str:
    if word.startswith("socket,id=monitor-"):
        return ",".join(f"fd={next(numbers)}" if part.startswith("fd=") else part for part in word.split(","))
    name = f"{vm.disks[0].volume_id}.qcow2"
    if name in word and word.startswith("{"):
        return json.dumps(_with_volume(json.loads(word), name, str(volume)))
    return word


def _with_volume(part: Any, name: str, volume: str) -> Any:
    if isinstance(part, dict):
        return {key: _with_volume(value, name, volume) for key, value in part.items()}
    return volume if isinstance(part, str) and part.endswith(name) else part


def _listen(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    path.chmod(0o666)
    made.listen(2)
    return made


# -- clone ---------------------------------------------------------------------------------------------------


async def clone(lab: Lab, path: Path, rounds: int, screen: Screen) -> Figures:
    """Times in ms of making a volume with the content of an image of 1 GiB and of one of 20 GiB."""
    sizes = {"1GiB": GIB, "20GiB": 20 * GIB}
    for name, size in sizes.items():
        await _sized_image(lab, path / name, f"disk-{name.lower()}", size)
    times: dict[str, list[float]] = {name: [] for name in sizes}
    for number in range(rounds + 1):
        for name, size in sizes.items():
            image = f"disk-{name.lower()}"
            wish = volumes.VolumeCreate(name=f"{image}-{number}", size_bytes=size, image=image)
            took_ms, made = await _timed(lambda wish=wish: _volume(lab, wish))  # type: ignore[misc]
            await lab.client.do(volumes.delete(made.id))
            if number:
                times[name].append(took_ms)
    found = {f"{name}_ms": statistics.median(taken) for name, taken in times.items()}
    screen.say(f"clone: {found}")
    return found | {"ratio": found["20GiB_ms"] / found["1GiB_ms"]}


async def _sized_image(lab: Lab, file: Path, name: str, size: int) -> None:
    """An image with data at its beginning, its middle and its end."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(file), str(size)], check=True)
    places = (0, size // 2, size - 64 * MIB)
    writes = [word for place in places for word in ("-c", f"write -P 0x5a {place} 64M")]
    subprocess.run(["qemu-io", "-f", "qcow2", *writes, str(file)], check=True, stdout=subprocess.DEVNULL)
    await lab.client.do(images.create(images.ImageCreate(name=name)))
    await lab.client.upload(name, FileRole.DISK, file)
    await lab.client.do(images.seal(name))
    file.unlink()


async def _volume(lab: Lab, wish: volumes.VolumeCreate) -> volumes.Volume:
    made = await lab.client.do(volumes.create(wish))
    while made.state == "creating":
        made = await lab.client.do(volumes.get(made.id))
    if made.state != "available":
        raise RuntimeError(f"{made.name} is {made.state}: {made.problem}")
    return made


# -- import --------------------------------------------------------------------------------------------------


async def imported(lab: Lab, path: Path, rounds: int, screen: Screen) -> Figures:
    """Bytes a second of an upload and of cp, the file in the page cache for both."""
    file = path / "import"
    await asyncio.to_thread(_fill, file, IMPORT_BYTES)
    ours: list[float] = []
    floor: list[float] = []
    for number in range(rounds):
        name = f"import-{number}"
        await lab.client.do(images.create(images.ImageCreate(name=name)))
        mine, _ = await _timed(lambda name=name: lab.client.upload(name, FileRole.DISK, file))  # type: ignore[misc]
        await lab.client.do(images.delete(name))
        bare = await asyncio.to_thread(_copy, file, path / "copy")
        ours.append(mine)
        floor.append(bare)
        screen.say(f"import {number}: novacron {mine:.0f} ms, cp {bare:.0f} ms")
    ratio = statistics.median(bare / mine for mine, bare in zip(ours, floor, strict=True))
    rate = IMPORT_BYTES / MIB / (statistics.median(ours) / 1e3)
    return {"mib_per_s": rate, "ratio_to_cp": ratio, "reached": ratio >= IMPORT_GOAL}


def _copy(source: Path, target: Path) -> float:
    began = time.monotonic()
    with source.open("rb") as read, target.open("wb") as written:
        shutil.copyfileobj(read, written, MIB)
        written.flush()
        os.fsync(written.fileno())
    took_ms = (time.monotonic() - began) * 1e3
    target.unlink()
    return took_ms


# -- many ----------------------------------------------------------------------------------------------------


async def crowd(lab: Lab, path: Path, count: int, screen: Screen) -> Figures:
    """All running at once, each heard to tick on its serial line: the ROM guest, 18 times a second."""
    guest = rom(path / "cache", 0, 0, SLOWEST)
    await lab.client.do(images.create(images.ImageCreate(name="ticker")))
    await lab.client.upload("ticker", FileRole.FIRMWARE, guest)
    await lab.client.do(images.seal("ticker"))
    vm = {"image": "ticker", "memory_mib": SMALL_MIB, "nics": []}
    await lab.client.do(templates.create(templates.TemplateCreate(name="small", vm=vm)))
    began = time.monotonic()
    await lab.client.do(templates.instantiate("small", templates.Instantiate(name="small", count=count)))
    names = [f"small-{number}" for number in range(1, count + 1)]
    running = [await lab.client.wait_vm(name, "running", deadline_s=ANSWER_S) for name in names]
    started_s = time.monotonic() - began
    screen.say(f"{count} run after {started_s:.0f} s; listening to each")
    before = [await _ticks(lab, vm.id) for vm in running]
    await asyncio.sleep(2)
    answered = sum([await _ticks(lab, vm.id) > was for vm, was in zip(running, before, strict=True)])
    used = [_pss_mib(vm.pid or 0) for vm in running]
    agent = lab.children["node-1"].process.pid
    spent, since = _cpu_s(agent), time.monotonic()
    await asyncio.sleep(20)  # the share is over this span
    share = (_cpu_s(agent) - spent) / (time.monotonic() - since)
    return {
        "count": count,
        "answered": answered,
        "running_after_s": started_s,
        "memory_mib_each": statistics.median(used),
        "agent_cpu_share": share,
    }


async def _ticks(lab: Lab, vm_id: str) -> int:
    """The newest tick on its console."""
    text = (await lab.client.do(vms.console_log(vm_id))).text
    ticks = [line.split() for line in text.splitlines() if line.startswith("T ")]
    return int(ticks[-1][1], 16) if ticks and len(ticks[-1]) == 3 else 0


def _pss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- shared --------------------------------------------------------------------------------------------------


async def _timed(work: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    began = time.monotonic()
    result = await work()
    return (time.monotonic() - began) * 1e3, result


async def _image(lab: Lab, file: Path, name: str, size: int) -> None:
    await asyncio.to_thread(_fill, file, size)
    await lab.client.do(images.create(images.ImageCreate(name=name)))
    await lab.client.upload(name, FileRole.DISK, file)
    await lab.client.do(images.seal(name))
    file.unlink()


def _fill(file: Path, size: int) -> None:
    piece = os.urandom(MIB)
    with file.open("wb") as out:
        out.write(bytes(MIB))  # no magic number of anything
        for _ in range(size // MIB - 1):
            out.write(piece)


async def _gone(lab: Lab, vm: vms.Vm) -> None:
    await lab.client.do(vms.delete(vm.id, force=True))
    await lab.client.wait_vm_gone(vm.id)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=QUESTIONS, action="append", help="may be given several times")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--many", type=int, default=100)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = asyncio.run(bench(frozenset(asked.only or QUESTIONS), asked.rounds, asked.many, Screen(sys.stderr)))
    found["machine"] = {"cpus": os.cpu_count(), "kernel": platform.release()}
    text = json.dumps(found, indent=1)
    sys.stdout.write(text + "\n")
    if asked.json:
        asked.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
