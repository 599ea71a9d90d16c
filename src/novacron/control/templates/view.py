"""A template as the API shows it: the shape of wire.rest.templates.Template."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.control.encoded import Encoded
from novacron.control.store.kinds import TEMPLATES
from novacron.control.store.records import Records
from novacron.model.template import Template, Version

_all_of = msgspec.structs.asdict


class TemplateView:
    """`data` builds the object, `encoded` its bytes, once for each revision."""

    def __init__(self, records: Records) -> None:
        self.encoded = Encoded(records, TEMPLATES, self.data)

    def data(self, template: Template, revision: int) -> dict[str, Any]:
        return {
            "id": template.id,
            "name": template.name,
            "description": template.description,
            "labels": template.labels,
            "default_version": template.default_version,
            "versions": [_version(version) for version in template.versions],
            "created_at": template.created_at,
            "updated_at": template.updated_at,
            "revision": revision,
        }


def _version(version: Version) -> dict[str, Any]:
    return {**_all_of(version), "parameters": [_all_of(parameter) for parameter in version.parameters]}
