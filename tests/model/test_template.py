"""Placeholders are filled, keep their type, and cannot be misspelt, left out or made to break out of their line."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from novacron.errors import InvalidInput
from novacron.model.template import Parameter, ParameterType, Version, check, rendered

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


def version(vm: dict[str, Any], *parameters: Parameter) -> Version:
    return Version(number=1, vm=vm, parameters=parameters, created_at=NOW)


def test_a_text_that_is_one_placeholder_takes_its_type_and_others_are_put_in() -> None:
    made = rendered(
        version(
            {
                "memory_mib": "{{param.mib}}",
                "labels": {"n": "{{vm.index}}"},
                "disks": [{"size_bytes": 1}],
                "x": "a {{vm.name}}!",
            },
            Parameter(name="mib", type=ParameterType.INTEGER, default=512),
        ),
        {"mib": 1024},
        vm_name="web-3",
        index=3,
    )  # fmt: skip
    assert made == {
        "memory_mib": 1024, "labels": {"n": 3}, "disks": [{"size_bytes": 1}], "x": "a web-3!", "name": "web-3",
    }  # fmt: skip


def test_what_only_looks_alike_is_left_alone() -> None:
    text = "${HOME} {{ v1.region }} {% if x %} {{vm.name}}"
    made = rendered(version({"cloud_init": {"user_data": text}}), {}, vm_name="a", index=1)
    assert made["cloud_init"]["user_data"] == "${HOME} {{ v1.region }} {% if x %} a"


@pytest.mark.parametrize("stray", ["{{param.other}}", "{{ param.mib }}", "{{vm.id}}", "{{param.Mib}}"])
def test_a_placeholder_that_stands_for_nothing_is_found_with_its_path(stray: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check(version({"a": [{"b": f"x{stray}"}]}, Parameter(name="mib")))
    assert [reason.subject for reason in refused.value.reasons] == ["vm.a.0.b"]


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        (Parameter(name="p"), "one\ntwo"),
        (Parameter(name="p"), 7),
        (Parameter(name="p"), "a\x00b"),
        (Parameter(name="p"), "a\x1bb"),
        (Parameter(name="p"), "a\rb"),
        (Parameter(name="p", type=ParameterType.INTEGER), "7"),
        (Parameter(name="p", choices=("a", "b")), "c"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(parameter: Parameter, value: str | int) -> None:
    with pytest.raises(InvalidInput) as refused:
        rendered(version({"a": "{{param.p}}"}, parameter), {"p": value}, vm_name="a", index=1)
    assert [reason.subject for reason in refused.value.reasons] == ["parameters.p"]


def test_what_is_missing_and_what_is_not_known_are_all_named() -> None:
    with pytest.raises(InvalidInput) as refused:
        rendered(version({}, Parameter(name="p")), {"q": 1}, vm_name="a", index=1)
    assert [reason.subject for reason in refused.value.reasons] == ["parameters.q", "parameters.p"]


def test_several_lines_where_they_are_allowed() -> None:
    made = rendered(
        version({"a": "k: {{param.p}}"}, Parameter(name="p", multiline=True)), {"p": "x\ny"}, vm_name="a", index=1
    )
    assert made["a"] == "k: x\ny"


def test_what_is_nested_without_end_is_refused() -> None:
    deep: Any = "x"
    for _ in range(40):
        deep = [deep]
    with pytest.raises(InvalidInput, match="nested"):
        check(version({"a": deep}))
