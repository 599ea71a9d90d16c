"""A scenario file read and checked: every error names the field and says what would be right."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError

from novacron.errors import InvalidInput
from novacron.model.ha import FenceClass
from novacron.model.identity import NAME_PATTERN, NAME_RULE
from novacron.simulation.scenario import (
    EVENTS,
    MAX_NODES,
    MAX_VMS,
    Arrivals,
    Create,
    Drain,
    Migrate,
    NodeGroup,
    Partition,
    PowerLoss,
    Scenario,
    ServerCrash,
    Start,
    Stop,
    Table,
    VmGroup,
)
from novacron.wire.rest.vms import VmCreate

MAX_BYTES = 1 << 20
FENCE_CLASSES = tuple(one.name.lower() for one in FenceClass)
LABEL_RULE = (
    "up to 63 letters, digits, '.', '_' and '-', beginning and ending with a letter or digit; keys in lower case"
)
IMAGE = "simulated"
"""The one image there is; nothing of it is read."""

_PLACE = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`")


def read(path: Path) -> Scenario:
    """The scenario in a TOML file. :raise InvalidInput"""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as wrong:
        raise InvalidInput.field("FILE", f"{path} cannot be read: {wrong.strerror}", "give a readable file") from wrong
    if len(data) > MAX_BYTES:
        raise InvalidInput.field("FILE", f"{path} is over {MAX_BYTES} bytes", "use groups with a count")
    return parse(data)


def parse(data: bytes) -> Scenario:
    """The scenario in the text of a TOML file. :raise InvalidInput"""
    try:
        raw = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as wrong:
        raise InvalidInput.field("FILE", f"is not TOML: {wrong}", "docs/simulate.md shows how one looks") from wrong
    try:
        scenario = msgspec.convert(raw, Scenario)
    except msgspec.ValidationError as wrong:
        raise _meaning(str(wrong), raw) from wrong
    _check_names(scenario)
    _check_vms(scenario)
    _check_events(scenario)
    return scenario


def asked_of(group: VmGroup, number: int, field: str) -> VmCreate:
    """What is asked of the API for the VM of that number. :raise InvalidInput: in a field below `field`."""
    try:
        return VmCreate.model_validate(
            {
                "name": f"{group.name}-{number}",
                "image": IMAGE,
                "vcpus": group.vcpus,
                "memory_mib": group.memory_mib,
                "labels": group.labels,
                "ha": group.ha,
                "placement": group.placement,
                "nics": [],
            }
        )
    except ValidationError as wrong:
        first = wrong.errors()[0]
        place = ".".join((field, *(str(part) for part in first["loc"])))
        remedy = "give what the API takes: docs/machines.md, docs/high-availability.md, docs/placement.md"
        raise InvalidInput.field(place, first["msg"], remedy) from wrong


def _meaning(message: str, raw: Mapping[str, Any]) -> InvalidInput:
    """msgspec's words as an error of ours."""
    found = _PLACE.match(message)
    what, path = (found["what"], found["path"] or "") if found else (message, "")
    unknown, missing = _UNKNOWN.fullmatch(what), _MISSING.fullmatch(what)
    if unknown or missing:
        name = (unknown or missing)[1]  # type: ignore[index]
        fields = ", ".join(_fields_at(path, raw))
        said = "is not known here" if unknown else "is missing"
        return InvalidInput.field(f"{path}.{name}".lstrip("."), said, f"known here: {fields}")
    if what.startswith("Invalid value") and path.endswith(".do"):
        return InvalidInput.field(path, "is no kind of event", f"give one of {', '.join(_kinds())}")
    if NAME_PATTERN in what:
        return InvalidInput.field(path, "is not a legal name", NAME_RULE)
    if "matching regex" in what:
        return InvalidInput.field(path, "is not a legal label", LABEL_RULE)
    if what.startswith("Invalid enum value"):
        return InvalidInput.field(path, "is no fence class", f"give one of {', '.join(FENCE_CLASSES)}")
    said = (what[:1].lower() + what[1:]).replace("`object`", "a table").replace("`array`", "a list")
    return InvalidInput.field(path or "FILE", said, "docs/simulate.md says what each field takes")


def _kinds() -> dict[str, type[Table]]:
    return {str(kind.__struct_config__.tag): kind for kind in EVENTS}


def _fields_at(path: str, raw: Mapping[str, Any]) -> Iterable[str]:
    tables: dict[str, type[Table]] = {"nodes": NodeGroup, "vms": VmGroup}
    head, _, rest = path.partition("[")
    table = tables.get(head, Scenario)
    if head == "events":
        kind = raw["events"][int(rest.partition("]")[0])].get("do")
        table = _kinds().get(kind, Table)
        return ("do", *table.__struct_fields__)
    return table.__struct_fields__


def _check_names(scenario: Scenario) -> None:
    seen: set[str] = set()
    for at, nodes in enumerate(scenario.nodes):
        for name in dict.fromkeys((nodes.name, *nodes.names())):
            if name in seen:
                raise InvalidInput.field(f"nodes[{at}].name", f"{name} is there already", "give each group its own")
            seen.add(name)
        if nodes.zone and "zone" in nodes.labels:
            raise InvalidInput.field(f"nodes[{at}].labels", "has `zone` beside zone", "give one of them")
    if len(scenario.node_names()) > MAX_NODES:
        raise InvalidInput.field("nodes", f"are more than {MAX_NODES}", "give fewer")
    names = [group.name for group in scenario.vms]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise InvalidInput.field(f"vms[{at}].name", f"{name} is there already", "give each group its own")


def _check_vms(scenario: Scenario) -> None:
    if sum(group.count for group in scenario.vms) > MAX_VMS:
        raise InvalidInput.field("vms", f"are more than {MAX_VMS}", "give fewer")
    for at, group in enumerate(scenario.vms):
        asked_of(group, MAX_VMS, f"vms[{at}]")
        if group.dirty_mib_per_s >= scenario.link_mib_per_s:
            remedy = "give less than link_mib_per_s: memory that changes faster than it travels never comes over"
            raise InvalidInput.field(f"vms[{at}].dirty_mib_per_s", "is not below the link's", remedy)


def _check_events(scenario: Scenario) -> None:
    nodes, groups = set(scenario.node_names()), {group.name for group in scenario.vms}
    for at, event in enumerate(scenario.events):
        field = f"events[{at}]"
        if event.at_s > scenario.duration_s:
            raise InvalidInput.field(f"{field}.at_s", "is after the end", "give at most duration_s")
        match event:
            case PowerLoss() | Partition() | Drain():
                _check_known(f"{field}.nodes", scenario.nodes_of(event.nodes), nodes, "node or group of nodes")
            case ServerCrash():
                _check_known(f"{field}.server", (event.server,), set(scenario.server_names()), "server")
            case Create() | Arrivals():
                _check_known(f"{field}.group", (event.group,), groups, "group of VMs")
            case Migrate() if event.to is not None:
                _check_known(f"{field}.to", (event.to,), nodes, "node")
            case _:
                pass
        if isinstance(event, Start | Stop | Migrate):
            owners = tuple(ref if ref in groups else ref.rpartition("-")[0] for ref in event.vms)
            _check_known(f"{field}.vms", owners, groups, "group of VMs, or VM <group>-<number>,")


def _check_known(field: str, refs: Iterable[str], known: set[str], what: str) -> None:
    for ref in refs:
        if ref not in known:
            few = ", ".join(sorted(known)[:8]) or "none is defined"
            raise InvalidInput.field(field, f"there is no {what} {ref!r}", f"known: {few}")
