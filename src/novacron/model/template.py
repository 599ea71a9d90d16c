"""A template: a VM to be made many times, in numbered versions that never change, with parameters to fill in."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from novacron.errors import InvalidInput, Reason

MAX_DEPTH = 12
_PLACE = re.compile(r"\{\{(param|vm)\.([a-z][a-z0-9_]{0,31})\}\}")
_NEAR = re.compile(r"\{\{\s*(?:param|vm)\s*\.[^}]{0,64}\}\}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class ParameterType(StrEnum):
    TEXT = "text"
    INTEGER = "integer"


Value = str | int


class Parameter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something asked for when a VM is made. default None: it must be given. choices: nothing else is taken.

    multiline: a text may have several lines; without, none can break out of the line it is put into.
    """

    name: str
    type: ParameterType = ParameterType.TEXT
    description: str = ""
    default: Value | None = None
    choices: tuple[Value, ...] = ()
    multiline: bool = False


class Version(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """vm: what would be sent to make a VM, without its name. In its texts `{{param.NAME}}` stands for a parameter,
    `{{vm.name}}` and `{{vm.index}}` (from 1) for the VM at hand; a text that is nothing but one of them takes its type.
    """

    number: int
    vm: dict[str, Any]
    created_at: datetime.datetime
    parameters: tuple[Parameter, ...] = ()
    note: str = ""


class Template(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one template; the newest version is the last. A version's number is never given again."""

    id: str
    name: str
    versions: tuple[Version, ...]
    created_at: datetime.datetime
    updated_at: datetime.datetime
    labels: dict[str, str] = {}
    description: str = ""
    default_version: int = 0  # 0: the newest


def version_of(template: Template, number: int = 0) -> Version:
    """The version of that number; 0: the default one. :raise InvalidInput: there is none of that number."""
    wanted = number or template.default_version or template.versions[-1].number
    found = next((version for version in template.versions if version.number == wanted), None)
    if found is None:
        there = ", ".join(str(version.number) for version in template.versions)
        raise InvalidInput.field("version", f"template {template.name} has no version {wanted}", f"give one of {there}")
    return found


def check(version: Version) -> None:
    """See that placeholders name parameters and that defaults fit. :raise InvalidInput: each fault, by its path."""
    names = {parameter.name for parameter in version.parameters}
    faults = [
        Reason("field.invalid", f"{name!r} stands for two parameters", "parameters", "give each a name of its own")
        for name in sorted(names)
        if sum(parameter.name == name for parameter in version.parameters) > 1
    ]
    for place, parameter in enumerate(version.parameters):
        if parameter.default is not None and (wrong := _misfit(parameter, parameter.default)):
            faults.append(Reason("field.invalid", wrong, f"parameters.{place}.default", "give one that fits"))
    faults += _strays(version.vm, names, "vm", 0)
    if faults:
        raise InvalidInput(f"{faults[0].subject}: {faults[0].message}", faults)


def rendered(version: Version, given: Mapping[str, Value], *, vm_name: str, index: int) -> dict[str, Any]:
    """What is sent to make one VM of it, its name included. :raise InvalidInput: each parameter that does not fit."""
    values = {**_values(version, given), ("vm", "name"): vm_name, ("vm", "index"): index}
    return {**_filled(version.vm, values), "name": vm_name}


def _values(version: Version, given: Mapping[str, Value]) -> dict[tuple[str, str], Value]:
    known = {parameter.name: parameter for parameter in version.parameters}
    faults = [
        Reason("field.invalid", "is no parameter of this version", f"parameters.{name}", f"it has {_list(known)}")
        for name in given
        if name not in known
    ]
    values: dict[tuple[str, str], Value] = {}
    for name, parameter in known.items():
        value = given.get(name, parameter.default)
        wrong = "is missing" if value is None else _misfit(parameter, value)
        if wrong:
            faults.append(Reason("field.invalid", wrong, f"parameters.{name}", parameter.description or "give it"))
        elif value is not None:
            values["param", name] = value
    if faults:
        raise InvalidInput(f"{faults[0].subject}: {faults[0].message}", faults)
    return values


def _misfit(parameter: Parameter, value: Value) -> str:
    if parameter.choices and value not in parameter.choices:
        return f"must be one of {', '.join(str(choice) for choice in parameter.choices)}"
    if parameter.type is ParameterType.INTEGER:
        return "" if isinstance(value, int) else "must be a whole number"
    if not isinstance(value, str):
        return "must be a text"
    if not parameter.multiline and "\n" in value:
        return "must be one line"
    return "holds control characters" if _CONTROL.search(value) else ""


def _strays(part: Any, names: set[str], path: str, depth: int) -> list[Reason]:
    """What looks like a placeholder and is none."""
    if depth > MAX_DEPTH:
        return [Reason("field.invalid", "is nested too deeply", path, f"use at most {MAX_DEPTH} levels")]
    if isinstance(part, Mapping):
        return [one for key, value in part.items() for one in _strays(value, names, f"{path}.{key}", depth + 1)]
    if isinstance(part, list | tuple):
        return [one for at, value in enumerate(part) for one in _strays(value, names, f"{path}.{at}", depth + 1)]
    if not isinstance(part, str):
        return []
    faults = []
    for found in _NEAR.finditer(part):
        exact = _PLACE.fullmatch(found[0])
        known = exact and (exact[2] in names if exact[1] == "param" else exact[2] in ("name", "index"))
        if not known:
            hint = f"parameters are {_list(names)}; written {{{{param.NAME}}}}, {{{{vm.name}}}} or {{{{vm.index}}}}"
            faults.append(Reason("field.invalid", f"{found[0]} stands for nothing", path, hint))
    return faults


def _filled(part: Any, values: Mapping[tuple[str, str], Value]) -> Any:
    if isinstance(part, Mapping):
        return {key: _filled(value, values) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [_filled(value, values) for value in part]
    if not isinstance(part, str):
        return part
    whole = _PLACE.fullmatch(part)
    if whole:
        return values[whole[1], whole[2]]
    return _PLACE.sub(lambda found: str(values[found[1], found[2]]), part)


def _list(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
