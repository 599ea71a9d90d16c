"""Decides what requests about templates mean, records it, and makes VMs of them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

import msgspec
from pydantic import ValidationError

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.once import Change, Once, Outcome
from novacron.control.problems import bad_request
from novacron.control.store.kinds import TEMPLATES, VMS
from novacron.control.store.records import Records, create, remove
from novacron.control.store.shelf import Stored
from novacron.control.vms.copies import MADE, made
from novacron.control.vms.service import VmService
from novacron.errors import CompareFailed, Conflict, InvalidInput, Reason
from novacron.model.identity import check_name
from novacron.model.template import Parameter, Template, Version, check, rendered, version_of
from novacron.model.vm import Vm
from novacron.wire.rest.templates import MAX_VERSIONS, Instantiate, TemplateCreate, TemplateUpdate, VersionCreate
from novacron.wire.rest.vms import VmCreate


class TemplateService:
    """Requests about templates, answered from the records alone."""

    def __init__(self, records: Records, vms: VmService, clock: Clock) -> None:
        self._records = records
        self._vms = vms
        self._clock = clock

    async def create(self, asked: TemplateCreate, once: Once) -> Outcome:
        """Record it with its first version. :raise NameTaken :raise InvalidInput: a placeholder or default is wrong."""
        now = self._clock.wall()
        template = Template(
            id=self._records.new_id(),
            name=asked.name,
            description=asked.description,
            labels=asked.labels,
            versions=(_version(asked, 1, now),),
            created_at=now,
            updated_at=now,
        )
        try:
            revision = await self._records.commit(create(TEMPLATES, template), *once.note(template, 201))
        except CompareFailed as lost:
            await self._records.refuse_taken_name(TEMPLATES, None, template, lost)
            raise
        return Outcome(Stored(template, revision), 201)

    async def update(self, ref: str, asked: TemplateUpdate, held: frozenset[str] | None) -> Outcome:
        """Change its words, or which version is taken by default. :raise NotFound, NameTaken, PreconditionFailed"""
        named = asked.model_dump(exclude_none=True)

        def change(template: Template) -> Template:
            new = msgspec.structs.replace(template, **named)
            version_of(new)
            return template if new == template else msgspec.structs.replace(new, updated_at=self._clock.wall())

        return await self._change(ref, change, held)

    async def add_version(self, ref: str, asked: VersionCreate, held: frozenset[str] | None, once: Once) -> Outcome:
        """The next version; those before it stay. :raise NotFound, Conflict: it has too many, PreconditionFailed"""

        def change(template: Template) -> Template:
            if len(template.versions) >= MAX_VERSIONS:
                remedy = f"novacron template delete-version {template.name} {template.versions[0].number}"
                reason = Reason("template.versions", "too many versions", subject=template.name, remedy=remedy)
                raise Conflict(f"template {template.name} has {MAX_VERSIONS} versions", [reason])
            now = self._clock.wall()
            version = _version(asked, template.versions[-1].number + 1, now)
            return msgspec.structs.replace(template, versions=(*template.versions, version), updated_at=now)

        outcome = await Change(self._records, TEMPLATES, ref, held, once).write(change)
        return Outcome(outcome.stored, 201)

    async def delete_version(self, ref: str, number: int, held: frozenset[str] | None) -> Outcome:
        """Forget a version; VMs made of it stay. :raise Conflict: the default or the last one. :raise NotFound"""

        def change(template: Template) -> Template:
            version_of(template, number)
            if number in (template.default_version, template.versions[-1].number):
                remedy = "make another the default, or add a newer one, first"
                reason = Reason("template.version_needed", "it is needed", subject=str(number), remedy=remedy)
                raise Conflict(f"version {number} is the default or the newest of {template.name}", [reason])
            left = tuple(version for version in template.versions if version.number != number)
            return msgspec.structs.replace(template, versions=left, updated_at=self._clock.wall())

        return await self._change(ref, change, held)

    async def delete(self, ref: str, held: frozenset[str] | None) -> None:
        """Forget it; VMs made of it stay. :raise NotFound, PreconditionFailed"""
        stored = self._records.find(TEMPLATES, ref)
        check_match(held, stored)
        await self._records.commit(remove(TEMPLATES, stored))

    async def instantiate(
        self, ref: str, asked: Instantiate, by: str, held: frozenset[str] | None, once: Once
    ) -> tuple[Sequence[Stored[Vm]], int]:
        """Make VMs of it, all or none; the VMs and the status to answer with.

        :raise InvalidInput: a parameter, or what the template comes to with them, is wrong.
        :raise NotFound, NameTaken, Conflict, NoRoom: as for one VM.
        """

        async def make() -> Outcome:
            stored = self._records.find(TEMPLATES, ref)
            check_match(held, stored)
            version = version_of(stored.record, asked.version)
            wishes = [_wish(version, asked, number) for number in range(asked.count)]
            born = await self._vms.create_many(wishes, by, once, made)
            return Outcome(Stored(made([stored.record for stored in born]), born[0].modified), 202)

        outcome = await once.perform(MADE, make)
        found = (self._records.get(VMS, vm_id) for vm_id in outcome.stored.record.vm_ids)
        return [stored for stored in found if stored is not None], outcome.status

    async def _change(self, ref: str, change: Callable[[Template], Template], held: frozenset[str] | None) -> Outcome:
        return await Change(self._records, TEMPLATES, ref, held).write(change)


def _version(asked: VersionCreate, number: int, now: datetime.datetime) -> Version:
    if "name" in asked.vm:
        raise InvalidInput.field("vm.name", "is given when a VM is made", "leave it out")
    parameters = tuple(Parameter(**one.model_dump() | {"choices": tuple(one.choices)}) for one in asked.parameters)
    version = Version(number=number, vm=asked.vm, parameters=parameters, note=asked.note, created_at=now)
    check(version)
    if all(parameter.default is not None for parameter in parameters):  # else it is checked when they are given
        _valid(rendered(version, {}, vm_name="name", index=1))
    return version


def _wish(version: Version, asked: Instantiate, number: int) -> VmCreate:
    index = asked.first_index + number
    name = asked.name if asked.count == 1 else check_name(f"{asked.name}-{index}", "name")
    body = rendered(version, asked.parameters, vm_name=name, index=index)
    labels = body.get("labels") or {}
    body["labels"] = {**labels, **asked.labels} if isinstance(labels, dict) else labels
    return _valid(body | ({"node": asked.node} if asked.node else {}))


def _valid(body: dict[str, object]) -> VmCreate:
    try:
        return VmCreate.model_validate(body)
    except ValidationError as wrong:
        raise bad_request([{**fault, "loc": ("body", "vm", *fault["loc"])} for fault in wrong.errors()]) from wrong
