"""Words the command line repeats are the model's; sizes and times are read as documented; nothing invisible passes."""

from __future__ import annotations

import click
import pytest

from novacron.cli import (
    amounts,
    bulk_migration,
    events,
    image,
    migration,
    node,
    node_fence,
    rehearsal,
    safe,
    vm,
    vm_migrate,
)
from novacron.cli.vm_spec import read_nic
from novacron.model.bulk_migration import BulkState
from novacron.model.event import ObjectType
from novacron.model.fence_device import FenceDeviceKind
from novacron.model.image import FileRole
from novacron.model.machine import Firmware, MachineKind
from novacron.model.migration import MigrationKind, MigrationState, Strategy
from novacron.model.node import NodeState
from novacron.model.rehearsal import RehearsalState
from novacron.model.vm import VmState


def choices(command: click.Command, option: str) -> list[str]:
    kind = next(one.type for one in command.params if option in one.opts)
    assert isinstance(kind, click.Choice)
    return list(kind.choices)


def test_choices_are_the_models_words() -> None:
    assert list(vm.STATES) == list(VmState)
    assert list(node.STATES) == list(NodeState)
    assert list(migration.STATES) == list(MigrationState)
    assert list(rehearsal.STATES) == list(RehearsalState)
    assert sorted(bulk_migration.STATES) == sorted(BulkState)
    assert list(events.TYPES) == list(ObjectType)
    assert choices(vm.create, "--machine") == list(MachineKind)
    assert choices(vm.create, "--firmware") == list(Firmware)
    assert choices(vm_migrate.migrate, "--kind") == list(MigrationKind)
    assert choices(vm_migrate.migrate, "--strategy") == list(Strategy)
    assert choices(node_fence.set_device, "--kind") == list(FenceDeviceKind)
    files = {name.removeprefix("--") for one in image.create.params for name in one.opts}
    assert set(FileRole) <= files


@pytest.mark.parametrize(
    ("text", "count"),
    [("2G", 2 << 30), ("2GiB", 2 << 30), ("2gb", 2 * 10**9), ("512M", 512 << 20), ("1.5k", 1536), ("7", 7),
     ("8 KiB", 8192), ("0.5T", 1 << 39), ("12B", 12)],
)  # fmt: skip
def test_sizes(text: str, count: int) -> None:
    assert amounts.read_size(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1G", "1X", "1e3", "1.0000001", "0x10", "１G", "1G/s", "1 G B", "9" * 20])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="2GiB"):
        amounts.read_size(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("100MiB/s", 100 << 20), ("100M", 100 << 20), ("1Gbit/s", 125_000_000), ("8bit/s", 1)],
)
def test_rates(text: str, count: int) -> None:
    assert amounts.read_rate(text) == count


@pytest.mark.parametrize("text", ["", "fast", "8bps", "1Gbit/h", "100M/h", "-1M/s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="Gbit/s"):
        amounts.read_rate(text)


@pytest.mark.parametrize(
    ("text", "span_s"),
    [("30s", 30), ("500ms", 0.5), ("5m", 300), ("1h30m", 5400), ("1h2m3.5s", 3723.5), ("7", 7), ("0", 0)],
)
def test_times(text: str, span_s: float) -> None:
    assert amounts.read_time(text) == span_s


@pytest.mark.parametrize("text", ["", "s", "5x", "-1s", "1s1m", "1 m", "inf", "nan", "1e9"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="1h30m"):
        amounts.read_time(text)


def test_figures_for_people() -> None:
    assert [amounts.size(n) for n in (0, 1023, 1024, 1536, 100 << 20, (1 << 30) - 1)] == [
        *("0 B", "1023 B", "1 KiB", "1.5 KiB", "100 MiB", "1024 MiB"),
    ]
    assert [amounts.seconds(n) for n in (0.04, 59.9, 61, 3600, 7500, 400_000)] == [
        *("0.0 s", "59.9 s", "1m01s", "1h00m", "2h05m", "4d"),
    ]
    assert [amounts.milliseconds(n) for n in (0.5, 12.0, 18.44, 7012.5)] == ["0.5 ms", "12 ms", "18.4 ms", "7.0 s"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "nothing", "user,bridge=", "forward=22", "user,forward=0", "user,forward=70000"),
        *("user,forward=a:b", "user,forward=1:2:3", "bridge", "user,mac", "user,forward=²"),
        *("user,boot", "user,boot=-1", "user,boot=x"),
    ],
)
def test_what_is_no_nic(text: str) -> None:
    with pytest.raises(ValueError):
        read_nic(text)


@pytest.mark.parametrize(
    "text",
    ["\x00", "\x1b[31m", "\x7f", "\x80", "\x9b", "\u2028", "\u202e", "\u200d", "\ud800", "\ufeff", "\U000e0001", "\r"],
)
def test_what_is_not_visible_is_written_out(text: str) -> None:
    assert safe.line(f"a{text}b").isprintable()
    assert safe.line(f"a{text}b").startswith("a\\")
    assert safe.lines(f"a{text}b").isprintable()
    assert safe.console(f"a{text}b").isprintable()


def test_what_is_visible_stays() -> None:
    assert safe.line("Grüße, 日本 \U0001f600") == "Grüße, 日本 \U0001f600"
    assert safe.lines("a\tb\nc") == "a\tb\nc"


def test_long_unfinished_sequences_cost_no_time() -> None:
    assert safe.console("\x1b]" * 50_000 + "end") == "end"
    assert safe.console("\x1b[" * 50_000 + "end").endswith("nd")
