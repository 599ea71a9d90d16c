"""Scenario files: what is taken, and that what is not is named with what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.errors import InvalidInput
from novacron.simulation import reading
from novacron.simulation.scenario import Drain, PowerLoss

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "scenarios").glob("*.toml"))
PLAIN = """
name = "plain"
duration_s = 60
[[nodes]]
name = "rack"
count = 3
[[nodes]]
name = "big"
[[vms]]
name = "web"
count = 2
"""


def refused(text: str) -> tuple[str, str]:
    """The field that is named, and the remedy."""
    with pytest.raises(InvalidInput) as wrong:
        reading.parse(text.encode())
    (reason,) = wrong.value.reasons
    assert reason.subject in wrong.value.message
    return reason.subject, reason.remedy


def event(text: str) -> str:
    return f"{PLAIN}[[events]]\n{text}\n"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_scenarios(path: Path) -> None:
    assert reading.read(path).name == path.stem


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


def test_what_is_left_out_has_a_value_and_groups_have_names() -> None:
    scenario = reading.parse(event('at_s = 1\ndo = "power_loss"\nnodes = ["big", "rack", "rack-2"]').encode())
    assert scenario.node_names() == ("rack-1", "rack-2", "rack-3", "big")
    assert scenario.server_names() == ("server-1",)
    (loss,) = scenario.events
    assert isinstance(loss, PowerLoss)
    assert scenario.nodes_of(loss.nodes) == ("big", "rack-1", "rack-2", "rack-3")
    assert loss.for_s is None


def test_an_event_is_read_by_what_it_does() -> None:
    (drain,) = reading.parse(event('at_s = 1\ndo = "drain"\nnodes = ["rack"]\nmaintenance_s = 5').encode()).events
    assert isinstance(drain, Drain)
    assert (drain.maintenance_s, drain.max_concurrent) == (5.0, 5)


@pytest.mark.parametrize(
    ("text", "field", "remedy"),
    [
        ("name = ", "FILE", "docs/simulate.md"),
        (PLAIN + 'colour = "red"', "vms[0].colour", "dirty_mib_per_s"),
        ("colour = 1\n" + PLAIN, "colour", "link_mib_per_s"),
        (PLAIN.replace("duration_s = 60", ""), "duration_s", "known here"),
        (PLAIN.replace("count = 3", "count = 0"), "nodes[0].count", "docs/simulate.md"),
        (PLAIN.replace("count = 3", 'count = "3"'), "nodes[0].count", "docs/simulate.md"),
        (PLAIN.replace('"rack"', '"Rack 1"'), "nodes[0].name", "lower-case letters"),
        (PLAIN + 'labels = { "A b" = "c" }', "vms[0].labels", "keys in lower case"),
        (PLAIN.replace("count = 3", 'fence_class = "wall"'), "nodes[0].fence_class", "watchdog"),
        ("nodes = [3]\n" + PLAIN.partition("[[nodes]]")[0], "nodes[0]", "docs/simulate.md"),
        (PLAIN.replace("duration_s = 60", "duration_s = nan"), "duration_s", "docs/simulate.md"),
        (PLAIN.replace('"big"', '"rack-2"'), "nodes[1].name", "its own"),
        (PLAIN + "vcpus = 0", "vms[0].vcpus", "docs/machines.md"),
        (PLAIN + 'ha = { policy = "always" }', "vms[0].ha.policy", "docs/high-availability.md"),
        (PLAIN + 'ha = { politics = "restart" }', "vms[0].ha.politics", "docs/high-availability.md"),
        (PLAIN + 'placement = { vm_rules = [{ kind = "near", labels = { a = "b" } }] }', "vms[0].placement", "docs"),
        (PLAIN + "dirty_mib_per_s = 5000", "vms[0].dirty_mib_per_s", "link_mib_per_s"),
        (event('at_s = 1\ndo = "explode"'), "events[0].do", "power_loss"),
        (event("at_s = 1"), "events[0].do", "known here"),
        (event('at_s = 1\ndo = "partition"\nnodes = ["big"]'), "events[0].for_s", "nodes"),
        (event('at_s = 1\ndo = "drain"\nnodes = ["big"]\nfor_s = 1'), "events[0].for_s", "maintenance_s"),
        (event('at_s = 61\ndo = "drain"\nnodes = ["big"]'), "events[0].at_s", "duration_s"),
        (event('at_s = 1\ndo = "drain"\nnodes = ["small"]'), "events[0].nodes", "big"),
        (event('at_s = 1\ndo = "server_crash"\nserver = "server-2"'), "events[0].server", "server-1"),
        (event('at_s = 1\ndo = "create"\ngroup = "db"'), "events[0].group", "web"),
        (event('at_s = 1\ndo = "migrate"\nvms = ["web-1"]\nto = "moon"'), "events[0].to", "rack-1"),
        (event('at_s = 1\ndo = "stop"\nvms = ["db-1"]'), "events[0].vms", "web"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(text: str, field: str, remedy: str) -> None:
    named, told = refused(text)
    assert named.startswith(field)
    assert remedy in told


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        reading.read(tmp_path / "none.toml")
