"""Templates on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from pydantic import Field, StrictInt, StringConstraints

from novacron.model.template import ParameterType
from novacron.wire.rest.common import Description, Labels, Name, Ref, Strict, example

MAX_INSTANCES = 100
MAX_VERSIONS = 100

ParameterName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Text = Annotated[str, StringConstraints(max_length=65536)]
Value = Annotated[int, StrictInt, Field(ge=-(1 << 53), le=1 << 53)] | Text


class ParameterIn(Strict):
    """Something asked for when a VM is made. Without a default it must be given."""

    name: ParameterName
    type: ParameterType = ParameterType.TEXT
    description: Description = ""
    default: Value | None = None
    choices: Annotated[list[Value], Field(max_length=64)] = []
    multiline: bool = False


class VersionCreate(Strict):
    """A version. `vm`: what POST /vms takes, without `name`; `{{param.NAME}}` stands for a parameter in its texts."""

    vm: Annotated[dict[str, Any], Field(max_length=64)]
    parameters: Annotated[list[ParameterIn], Field(max_length=64)] = []
    note: Description = ""

    model_config = Strict.model_config | example(
        {
            "vm": {"image": "debian-12", "vcpus": 2, "memory_mib": "{{param.memory_mib}}"},
            "parameters": [{"name": "memory_mib", "type": "integer", "default": 2048}],
            "note": "more memory",
        }
    )


class TemplateCreate(VersionCreate):
    """A template with its first version."""

    name: Name
    description: Description = ""
    labels: Labels = {}

    model_config = Strict.model_config | example(
        {
            "name": "web",
            "vm": {
                "image": "debian-12",
                "memory_mib": 2048,
                "cloud_init": {
                    "user_data": "#cloud-config\nhostname: {{vm.name}}\nfqdn: {{vm.name}}.{{param.domain}}\n"
                },
            },
            "parameters": [{"name": "domain", "default": "example.net"}],
        }
    )


class TemplateUpdate(Strict):
    """What may be changed; a field left out stays as it is. default_version 0: always the newest."""

    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None
    default_version: Annotated[int, Field(ge=0, le=1 << 31)] | None = None

    model_config = Strict.model_config | example({"default_version": 1})


class Instantiate(Strict):
    """VMs to be made of it: all of them or none. With count 1 the VM has that name, with more `<name>-1` and so on.

    labels are added to the template's own; node: all go there.
    """

    name: Name
    count: Annotated[int, Field(ge=1, le=MAX_INSTANCES)] = 1
    first_index: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    version: Annotated[int, Field(ge=0, le=1 << 31)] = 0
    parameters: Annotated[dict[ParameterName, Value], Field(max_length=64)] = {}
    labels: Labels = {}
    node: Ref | None = None

    model_config = Strict.model_config | example({"name": "web", "count": 50, "parameters": {"domain": "example.net"}})


class ParameterOut(Strict):
    name: str
    type: ParameterType
    description: str = ""
    default: str | int | None = None
    choices: list[str | int] = []
    multiline: bool = False


class VersionOut(Strict):
    number: int
    vm: dict[str, Any]
    parameters: list[ParameterOut]
    note: str
    created_at: datetime.datetime


class Template(Strict):
    """A template; `versions` never change, the newest is the last."""

    id: str
    name: str
    description: str
    labels: dict[str, str]
    default_version: int
    versions: list[VersionOut]
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000008",
            "name": "web",
            "description": "",
            "labels": {},
            "default_version": 0,
            "versions": [
                {
                    "number": 1,
                    "vm": {"image": "debian-12", "memory_mib": "{{param.memory_mib}}"},
                    "parameters": [{"name": "memory_mib", "type": "integer", "default": 2048}],
                    "note": "",
                    "created_at": "2026-01-02T03:04:05Z",
                }
            ],
            "created_at": "2026-01-02T03:04:05Z",
            "updated_at": "2026-01-02T03:04:05Z",
            "revision": 42,
        }
    )
