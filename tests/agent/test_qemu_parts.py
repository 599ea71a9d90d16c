"""The small parts of the QEMU driver: what words mean, who goes first, files in a hostile place, what is chosen."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import socket
from pathlib import Path

import pytest

from novacron.agent.drivers.qemu import guest_agent, migration, record, status, tls
from novacron.agent.drivers.qemu.features import FORMAT, KVM_MODELS, Probed, default_cpu, hardware, probe
from novacron.agent.drivers.qemu.firmware import find_uefi, has_network_rom
from novacron.agent.drivers.qemu.gate import Gate
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.clock import SystemClock
from novacron.errors import DriverError, Unsupported
from novacron.model.machine import MachineKind, MachineSpec, MachineStatus
from novacron.model.migration import Goals

pytestmark = pytest.mark.anyio
S = MachineStatus
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


# -- what QEMU's words mean ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run_state", "arriving", "sent", "expected"),
    [
        ("running", False, False, S.RUNNING),
        ("paused", False, False, S.PAUSED),
        ("io-error", False, False, S.STALLED),
        ("shutdown", False, False, S.STOPPED),
        ("inmigrate", True, False, S.INCOMING),
        ("paused", True, False, S.INCOMING),  # loaded whole, not taken over
        ("prelaunch", True, False, S.INCOMING),
        ("finish-migrate", False, False, S.PAUSED),
        ("postmigrate", False, True, S.HANDED_OFF),
        ("paused", False, True, S.HANDED_OFF),  # what a refused `cont` leaves
        ("postmigrate", False, False, S.PAUSED),  # reclaimed, and was paused before
        ("running", False, True, S.RUNNING),
        ("something new", False, False, S.PAUSED),
    ],
)
def test_status(run_state: str, arriving: bool, sent: bool, expected: MachineStatus) -> None:
    assert status.meaning(run_state, arriving=arriving, sent=sent)[0] is expected


def test_a_strange_state_is_told_in_qemus_word() -> None:
    assert "colo" in status.meaning("colo", arriving=False, sent=False)[1]


# -- who goes first ------------------------------------------------------------------------------------------


async def test_verbs_wait_for_one_another() -> None:
    gate, order = Gate(), []

    async def work(name: str) -> str:
        order.append(f"{name} in")
        await asyncio.sleep(0)
        order.append(f"{name} out")
        return name

    assert await asyncio.gather(gate.run("a", work("a")), gate.run("b", work("b"))) == ["a", "b"]
    assert order == ["a in", "a out", "b in", "b out"]
    assert gate.idle


async def test_a_pushing_verb_ends_the_one_at_work_and_those_that_wait() -> None:
    gate, undone, never = Gate(), [], []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            undone.append("slow")

    async def waiting() -> None:
        never.append("waiting")

    async def forced() -> str:
        assert undone == ["slow"]  # it has undone what it did
        return "done"

    first = asyncio.create_task(gate.run("start", slow()))
    second = asyncio.create_task(gate.run("pause", waiting()))
    await asyncio.sleep(0.01)
    assert await gate.run("stop", forced(), pushes=True) == "done"
    for task in (first, second):
        with pytest.raises(DriverError, match="gave way to stop"):
            await task
    assert never == []
    assert gate.idle


async def test_pushing_verbs_do_not_push_each_other() -> None:
    gate, order = Gate(), []

    async def work(name: str) -> None:
        await asyncio.sleep(0.01)
        order.append(name)

    await asyncio.gather(gate.run("a", work("a"), pushes=True), gate.run("b", work("b"), pushes=True))
    assert order == ["a", "b"]


async def test_a_caller_that_leaves_waits_until_its_work_is_undone() -> None:
    gate, undone = Gate(), []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            undone.append(True)

    caller = asyncio.create_task(gate.run("start", work()))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert undone == [True]
    assert gate.idle


async def test_an_error_is_the_verbs_own() -> None:
    gate = Gate()

    async def fails() -> None:
        raise Unsupported("no")

    with pytest.raises(Unsupported):
        await gate.run("start", fails())
    assert gate.idle


# -- a migration's numbers -----------------------------------------------------------------------------------


def test_a_downtime_goal_leaves_room_for_what_is_not_memory() -> None:
    limits = [migration.source_parameters(Goals(max_downtime_ms=ms), "k")["downtime-limit"] for ms in (100, 1, 0)]
    assert limits == [30, 1, migration.NO_BOUND_MS]


def test_defaults_undo_every_parameter_that_was_set() -> None:
    assert set(migration.default_parameters()) == set(migration.source_parameters(Goals(), "k"))


def test_a_qemu_without_a_needed_capability_is_refused_by_its_name() -> None:
    known = [f"migrate.{name}" for name in migration.CAPABILITIES]
    migration.require(known)
    with pytest.raises(Unsupported, match="return-path"):
        migration.require([name for name in known if "return-path" not in name])


def test_addresses_are_ip_addresses_and_nothing_else() -> None:
    assert migration.uri("127.0.0.1", 1) == "tcp:127.0.0.1:1"
    assert migration.uri("::1", 1) == "tcp:[::1]:1"
    for evil in ("example.org", "exec:reboot", "127.0.0.1,to=9", "", "127.0.0.1:1"):
        with pytest.raises(Unsupported):
            migration.uri(evil, 1)


def test_progress_counts_in_bytes_and_predicts_only_what_converges() -> None:
    memory = migration.Memory(transferred=10, remaining=4_000_000, total=99, mbps=16.0, dirty_pages_rate=244)
    seen = migration.progress_of(migration.Info(status="active", ram=memory), NOW)
    assert seen.rate_bytes_per_s == 2_000_000
    assert seen.dirty_rate_bytes_per_s == 999_424
    assert seen.predicted_end is not None
    assert (seen.predicted_end - NOW).total_seconds() == pytest.approx(4_000_000 / (2_000_000 - 999_424))
    for dirty in (489, 5000):
        hot = migration.Memory(remaining=1, mbps=16.0, dirty_pages_rate=dirty)
        assert migration.progress_of(migration.Info(status="active", ram=hot), NOW).predicted_end is None


def test_figures_say_nothing_that_was_not_measured() -> None:
    bare = migration.figures_of(migration.Info(status="completed"))
    assert (bare.downtime_qemu_ms, bare.rate_bytes_per_s) == (None, None)
    memory = migration.Memory(transferred=1_000_000, total=7, dirty_sync_count=3)
    full = migration.figures_of(
        migration.Info(status="completed", total_time=600, setup_time=100, downtime=12, ram=memory)
    )
    assert (full.downtime_qemu_ms, full.rate_bytes_per_s, full.iterations) == (12.0, 2_000_000.0, 3)


# -- files in a place that belongs to another ----------------------------------------------------------------


def test_what_another_put_there_is_not_read_as_ours(tmp_path: Path) -> None:
    run_dir, outside = RunDir(tmp_path / "vm"), tmp_path / "outside"
    run_dir.path.mkdir()
    outside.write_text("secret")
    run_dir.write_own("own", b"x")
    assert run_dir.read_own("own", 10) == b"x"
    (run_dir.path / "link").symlink_to(outside)
    (run_dir.path / "hard").hardlink_to(outside)
    os.mkfifo(run_dir.path / "pipe")
    for name in ("link", "hard", "absent"):
        assert run_dir.read_own(name, 10) is None
    for name in ("link", "pipe", "absent"):
        assert run_dir.tail(name, 10) == b""


def test_words_leave_out_that_qemu_waited_for_us(tmp_path: Path) -> None:
    waits = "qemu: -chardev socket,id=monitor-agent: info: QEMU waiting for connection on: disconnected:unix:agent.qmp"
    (tmp_path / "log").write_text(f"{waits}\nno such disk\n")
    assert RunDir(tmp_path).words("log", 2048) == "no such disk"


def test_writing_follows_no_link(tmp_path: Path) -> None:
    run_dir, outside = RunDir(tmp_path / "vm"), tmp_path / "outside"
    run_dir.path.mkdir()
    outside.write_text("kept")
    for name in ("own", ".own.new", "log"):
        (run_dir.path / name).symlink_to(outside)
    (run_dir.path / "hard").hardlink_to(outside)
    run_dir.write_own("own", b"x")
    os.close(run_dir.create("log", os.O_WRONLY, None, None))
    run_dir.cut("hard", 0)
    run_dir.remove("hard", "log")
    assert outside.read_text() == "kept"
    assert (run_dir.path / "own").read_bytes() == b"x"
    assert (run_dir.path / "own").stat().st_mode & 0o777 == 0o600


def test_a_key_is_for_one_user_and_leaves_nothing(tmp_path: Path) -> None:
    run_dir, outside = RunDir(tmp_path / "vm"), tmp_path / "outside"
    run_dir.path.mkdir()
    outside.mkdir()
    migration_id, key = "018f0000-0000-7000-8000-000000000001", tls.new_key()
    tls.write(run_dir, migration_id, key, None, None)
    folder = run_dir.path / tls.FOLDER
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert tls.read(run_dir, migration_id) == key
    assert tls.read(run_dir, "018f0000-0000-7000-8000-000000000002") is None
    tls.erase(run_dir)
    assert list(run_dir.path.iterdir()) == []
    folder.symlink_to(outside)
    with pytest.raises(DriverError):
        tls.write(run_dir, migration_id, key, None, None)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("migration_id", "key"), [("x\ny", "0" * 64), ("018f0000-0000-7000-8000-000000000001", "0\n1")]
)
def test_a_key_file_has_one_line(tmp_path: Path, migration_id: str, key: str) -> None:
    with pytest.raises(Unsupported):
        tls.write(RunDir(tmp_path), migration_id, key, None, None)


def test_stderr_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("ab") as writer:
        writer.write(b"x" * 100)
        writer.flush()
        RunDir(tmp_path).cut("log", 100)
        assert log.stat().st_size == 100
        RunDir(tmp_path).cut("log", 99)
        writer.write(b"end")
        writer.flush()
    assert log.read_bytes() == b"end"


def test_a_record_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    noted = record.Record(vm_id="v", generation=1, machine_type="m", cpu_model="c", accelerator="tcg")
    noted.transfer = record.Transfer(migration_id="x", role=record.Role.TARGET, taken_over=True)
    record.save(RunDir(tmp_path), noted)
    assert record.load(RunDir(tmp_path)) == noted
    (tmp_path / record.FILE).write_bytes(b'{"vm_id": "v"')
    assert record.load(RunDir(tmp_path)) is None
    assert record.load(RunDir(tmp_path / "absent")) is None


def test_sockets_work_however_deep_the_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 200)
    deep.mkdir()
    with RunDir(deep).listen("qmp"), RunDir(deep).connect("qmp"):
        assert (deep / "qmp").stat().st_mode & 0o777 == 0o600


# -- what is chosen ------------------------------------------------------------------------------------------

PROBED = Probed(
    format=FORMAT,
    version="7.2.0",
    features=(),
    machine_types=("microvm", "pc-q35-7.1", "pc-q35-7.2"),
    default_machine_types={"q35": "pc-q35-7.2", "microvm": "microvm"},
    cpu_models=("Haswell-noTSX", "Nehalem", "qemu64"),
)
SPEC = MachineSpec(vm_id="v", generation=1, vcpus=1, memory_mib=32)


def spec(**changes: object) -> MachineSpec:
    return MachineSpec(**({"vm_id": "v", "generation": 1, "vcpus": 1, "memory_mib": 32} | changes))  # type: ignore[arg-type]


def test_hardware_is_pinned_or_chosen_from_what_qemu_listed() -> None:
    assert hardware(spec(), PROBED, "tcg") == ("pc-q35-7.2", "Nehalem")
    assert hardware(spec(), PROBED, "kvm") == ("pc-q35-7.2", "Haswell-noTSX")
    assert hardware(spec(machine_type="pc-q35-7.1", cpu_model="qemu64"), PROBED, "tcg") == ("pc-q35-7.1", "qemu64")
    assert hardware(spec(machine=MachineKind.MICROVM), PROBED, "tcg")[0] == "microvm"


@pytest.mark.parametrize(
    "changes",
    [
        {"machine_type": "pc-q35-99"},
        {"machine_type": "pc-q35-7.2,process=x"},
        {"cpu_model": "Nehalem,x=y"},
        {"cpu_model": "host"},
        {"machine_type": "microvm"},
        {"machine": MachineKind.MICROVM, "machine_type": "pc-q35-7.2"},
    ],
)
def test_a_pin_that_qemu_did_not_list_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(Unsupported):
        hardware(spec(**changes), PROBED, "tcg")


def test_a_default_cpu_is_a_named_one_the_host_runs() -> None:
    assert default_cpu(tuple(KVM_MODELS), "kvm") == KVM_MODELS[0]
    with pytest.raises(Unsupported):
        default_cpu(("max",), "tcg")


async def test_findings_are_kept_and_a_spoiled_cache_is_not_believed(tmp_path: Path) -> None:
    cached = tmp_path / "features-tcg-key.json"
    cached.write_text(json.dumps({**json.loads(_encoded()), "version": "from the cache"}))
    kept = await probe(Path("/no/such/qemu"), "tcg", tmp_path, "key", SystemClock())
    assert kept.version == "from the cache"
    for spoiled in ("{", json.dumps({**json.loads(_encoded()), "format": 0})):
        cached.write_text(spoiled)
        with pytest.raises((DriverError, OSError)):
            await probe(Path("/no/such/qemu"), "tcg", tmp_path, "key", SystemClock())


def _encoded() -> bytes:
    return record.msgspec.json.encode(PROBED)


def test_firmware_is_found_by_its_description(tmp_path: Path) -> None:
    code, variables = tmp_path / "code.fd", tmp_path / "vars.fd"
    code.touch()
    variables.touch()
    plain = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(code), "format": "raw"},
            "nvram-template": {"filename": str(variables), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": ["acpi-s3"],
    }
    assert find_uefi((tmp_path,)) is None
    (tmp_path / "10-smm.json").write_text(json.dumps(plain | {"features": ["requires-smm"]}))
    (tmp_path / "20-arm.json").write_text(json.dumps(plain | {"targets": [{"architecture": "aarch64"}]}))
    (tmp_path / "30-broken.json").write_text("{")
    assert find_uefi((tmp_path,)) is None
    (tmp_path / "40-plain.json").write_text(json.dumps(plain))
    found = find_uefi((tmp_path,))
    assert found is not None
    assert (found.code, found.variables) == (code, variables)
    variables.unlink()
    assert find_uefi((tmp_path,)) is None


def test_a_rom_to_boot_cards_with_is_looked_for_beside_the_qemu_that_runs(tmp_path: Path) -> None:
    binary, roms = tmp_path / "bin" / "qemu", tmp_path / "lib" / "ipxe" / "qemu"
    for folder in (binary.parent, roms):
        folder.mkdir(parents=True)
    binary.touch()
    (tmp_path / "elsewhere").symlink_to(binary)
    assert not has_network_rom(binary)
    (roms / "efi-virtio.rom").touch()
    assert has_network_rom(binary)
    assert has_network_rom(tmp_path / "elsewhere")


# -- the agent inside the guest ------------------------------------------------------------------------------


async def guest(answers: list[bytes]) -> tuple[bool, bytes]:
    """Whether it was told to shut down, and all it was told, by a guest that says this."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=theirs)
    for answer in answers:
        writer.write(answer)
    done = await guest_agent.shut_down(ours, 7, 0.2)
    told = await reader.read()
    writer.close()
    return done, told


async def test_a_guest_agent_that_answers_is_told_to_power_off() -> None:
    done, told = await guest([b'{"return": 99}\n', b"\xff", b'{"return": 7}\n'])
    assert done
    assert b'"guest-shutdown","arguments":{"mode":"powerdown"}' in told


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [b'\xff{"return": 8}\n'],
        [b"\xff" + b"x" * 100_000],
        [b"\xff\n\n\n"],
        [b'\xff{"return": "7"}\n'],
        [b"[" * 9000],
    ],
    ids=["nothing", "another number", "a flood", "nothing much", "a text", "brackets"],
)
async def test_a_guest_that_says_anything_else_is_not_trusted(answers: list[bytes]) -> None:
    done, told = await guest(answers)
    assert not done
    assert b"guest-shutdown" not in told
