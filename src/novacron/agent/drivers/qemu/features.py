"""What a QEMU binary can do, found by asking a throw-away process of it; never by its version number.

The answers are kept in the cache directory under the binary's content and age, and asked for again when it changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from novacron.agent.drivers.qemu.process import spawn
from novacron.agent.drivers.qemu.qmp import Monitor
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.clock import Clock
from novacron.errors import DeadlineExceeded, DriverError, MonitorFailed, Unsupported
from novacron.model.machine import MachineKind, MachineSpec

GREETING_DEADLINE_S = 30.0
FORMAT = 2  # of the cache file
COMMANDS = ("announce-self", "blockdev-mirror", "blockdev-set-active", "block-job-change", "calc-dirty-rate", "yank")
PARAMETERS = ("zero-page-detection",)
TCG_MODEL = "Nehalem"  # every flag of it is emulated, so it runs and moves anywhere
KVM_MODELS = (
    *("Icelake-Server", "Cascadelake-Server", "Skylake-Server", "Broadwell", "Haswell"),
    *("EPYC-Milan", "EPYC-Rome", "EPYC", "IvyBridge", "SandyBridge", "Westmere", "Nehalem", "qemu64"),
)
"""Newest first; the first that this host runs whole. A fleet of mixed hosts pins one that all of them run."""


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. features: `migrate.<capability>`, `migrate.parameter.<name>` and `qmp.<command>`; cpu_models:
    those that run here whole.
    """

    format: int
    version: str
    features: tuple[str, ...]
    machine_types: tuple[str, ...]
    default_machine_types: dict[str, str]
    cpu_models: tuple[str, ...]


class _Machine(msgspec.Struct, rename="kebab"):
    """One entry of query-machines."""

    name: str
    alias: str = ""


class _Cpu(msgspec.Struct, rename="kebab"):
    """One entry of query-cpu-definitions."""

    name: str
    unavailable_features: list[str] | None = None
    deprecated: bool = False
    migration_safe: bool = msgspec.field(name="migration-safe", default=False)


class _Entity(msgspec.Struct, rename="kebab"):
    """One entry of query-qmp-schema."""

    name: str
    meta_type: str


class _Capability(msgspec.Struct):
    """One entry of query-migrate-capabilities."""

    capability: str


def locate(binary: str) -> Path:
    """The binary's path. :raise Unsupported: it is not installed."""
    found = shutil.which(binary)
    if found is None:
        raise Unsupported(f"{binary} is not installed on this node (Debian: package qemu-system-x86)")
    return Path(found)


def fingerprint(binary: Path) -> str:
    """Names this content at this age. Reads the whole file: call it off the event loop."""
    with binary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{digest[:32]}-{binary.stat().st_mtime_ns}"


async def probe(binary: Path, accelerator: str, cache_dir: Path, key: str, clock: Clock) -> Probed:
    """The findings for this binary, from the cache if they are there. :raise DriverError: QEMU cannot be asked."""
    cached = cache_dir / f"features-{accelerator}-{key}.json"
    with contextlib.suppress(OSError, msgspec.DecodeError):
        kept = msgspec.json.decode(cached.read_bytes(), type=Probed)
        if kept.format == FORMAT:
            return kept
    async with asked(binary, accelerator, cache_dir, clock) as monitor:
        found = await _ask(monitor)
    keep(cached, msgspec.json.encode(found))
    return found


def keep(path: Path, data: bytes) -> None:
    """Write a cache file at once or not at all. :raise DriverError: the cache directory cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError as wrong:
        raise DriverError(f"the cache {path.parent} cannot be written: {wrong}") from wrong


def hardware(spec: MachineSpec, probed: Probed, accelerator: str) -> tuple[str, str]:
    """The machine type and CPU model this machine gets: its pins, or this node's choice. Pure.

    :raise Unsupported: a pin names something this QEMU does not have, or this host does not run.
    """
    machine_type = spec.machine_type or probed.default_machine_types.get(spec.machine.value, "")
    if machine_type not in probed.machine_types:
        raise Unsupported(f"this QEMU has no machine type {machine_type or spec.machine.value!r}")
    if (spec.machine is MachineKind.MICROVM) != machine_type.startswith("microvm"):
        raise Unsupported(f"machine type {machine_type!r} is no {spec.machine.value}")
    cpu_model = spec.cpu_model or default_cpu(probed.cpu_models, accelerator)
    if cpu_model not in probed.cpu_models:
        raise Unsupported(f"this node does not run CPU model {cpu_model!r} with {accelerator}")
    return machine_type, cpu_model


def default_cpu(models: tuple[str, ...], accelerator: str) -> str:
    """The model a machine gets when none is pinned: a named one, so that it can move. Pure."""
    wanted = (TCG_MODEL,) if accelerator == "tcg" else KVM_MODELS
    with_variants = [name for model in wanted for name in (model, f"{model}-noTSX")]
    for name in with_variants:
        if name in models:
            return name
    raise Unsupported("this host runs none of the CPU models a machine could be given: pin one")


@contextlib.contextmanager
def scratch(cache_dir: Path, prefix: str) -> Iterator[RunDir]:
    """A directory for a throw-away process. :raise DriverError: the cache directory cannot be written."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=prefix, dir=cache_dir)
    except OSError as wrong:
        raise DriverError(f"the cache {cache_dir} cannot be written: {wrong}") from wrong
    with folder as path:
        yield RunDir(Path(path))


@contextlib.asynccontextmanager
async def asked(
    binary: Path, accelerator: str, cache_dir: Path, clock: Clock, *more: str, uid: int | None = None
) -> AsyncIterator[Monitor]:
    """A monitor of a process with no machine, ended afterwards. more: arguments; uid: the user it runs as.

    :raise DriverError: it cannot be started, or hangs up, or refuses what it is asked.
    """
    with scratch(cache_dir, "probe-") as run_dir:
        stderr = run_dir.create("stderr.log", os.O_WRONLY | os.O_APPEND, None, None)
        with run_dir.listen("qmp") as listening:
            argv = [str(binary), "-nodefaults", "-no-user-config", "-display", "none", "-S", "-machine", "none"]
            argv += ["-accel", accelerator, "-mon", "chardev=qmp,mode=control", *more]
            argv += ["-chardev", f"socket,id=qmp,fd={listening.fileno()},server=on,wait=on"]  # why: command._monitors
            try:
                fds = [listening.fileno()]
                process = spawn(argv, directory=run_dir.path, stderr=stderr, uid=uid, gid=uid, pass_fds=fds)
            finally:
                os.close(stderr)
        monitor = Monitor(clock, lambda _: None, lambda: None)
        try:
            await monitor.connect(run_dir.connect("qmp"), GREETING_DEADLINE_S)
            yield monitor
        except (MonitorFailed, DeadlineExceeded) as wrong:
            words = run_dir.words("stderr.log", 2048)
            raise DriverError(f"{binary} cannot be asked what it can do: {words or wrong.message}") from wrong
        finally:
            await monitor.close()
            process.kill()
            await process.ended


async def _ask(monitor: Monitor) -> Probed:
    version = await monitor.ask(dict[str, object], "query-version")
    known = await monitor.ask(list[_Capability], "query-migrate-capabilities")
    parameters = await monitor.ask(dict[str, object], "query-migrate-parameters")
    schema = await monitor.ask(list[_Entity], "query-qmp-schema")
    machines = await monitor.ask(list[_Machine], "query-machines")
    cpus = await monitor.ask(list[_Cpu], "query-cpu-definitions")
    commands = {entity.name for entity in schema if entity.meta_type == "command"}
    defaults = {kind.value: _versioned(kind, machines) for kind in MachineKind}
    return Probed(
        format=FORMAT,
        version=_version(version),
        features=(
            *sorted(f"migrate.{entry.capability}" for entry in known),
            *(f"migrate.parameter.{name}" for name in PARAMETERS if name in parameters),
            *(f"qmp.{command}" for command in COMMANDS if command in commands),
        ),
        machine_types=tuple(sorted(m.name for m in machines if m.name.startswith(("pc-q35-", "microvm")))),
        default_machine_types={kind: name for kind, name in defaults.items() if name},
        cpu_models=tuple(sorted(cpu.name for cpu in cpus if cpu.migration_safe and cpu.unavailable_features == [])),
    )


def _versioned(kind: MachineKind, machines: list[_Machine]) -> str:
    """The pinned name behind `q35`; a QEMU whose microvm has no versions has that one alone."""
    names = [machine.name for machine in machines if machine.alias == kind.value or machine.name == kind.value]
    return names[0] if names else ""


def _version(answer: dict[str, object]) -> str:
    try:
        parts = msgspec.convert(answer["qemu"], dict[str, int])
        return f"{parts['major']}.{parts['minor']}.{parts['micro']}"
    except (KeyError, msgspec.ValidationError) as wrong:
        raise MonitorFailed("query-version answered something unexpected") from wrong
