"""The paths of templates: what is asked, who may, what is answered. Nothing is decided here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from novacron.control.access.guard import Caller, needs
from novacron.control.answers import JSON, PREFIX, IfMatch, Listed, noun, page, problems, reads, record
from novacron.control.once import Asked, Outcome
from novacron.control.store.kinds import TEMPLATES
from novacron.control.store.records import Records
from novacron.control.templates.service import TemplateService
from novacron.control.templates.view import TemplateView
from novacron.control.vms.view import VmView
from novacron.wire.rest import templates as wire
from novacron.wire.rest.common import PageOf, Ref
from novacron.wire.rest.vms import VmList

TemplateRef = Annotated[Ref, Path(description="Id or name of a template.")]
Number = Annotated[int, Path(description="Number of a version.", ge=1, le=1 << 31)]


def router(records: Records, service: TemplateService, view: TemplateView, vm_view: VmView) -> APIRouter:
    """All paths of templates."""
    routes = noun("templates")
    _reading(routes, records, view)
    _writing(routes, service, view)
    _versions(routes, service, view)
    _instances(routes, service, vm_view)
    return routes


def _reading(routes: APIRouter, records: Records, view: TemplateView) -> None:
    @routes.get(
        "/templates",
        dependencies=[needs("templates.read")],
        responses=problems(),
        response_model=PageOf[wire.Template],
    )
    async def list_templates(listed: Listed) -> Response:
        """One page of templates, oldest first."""
        found, more = records.page(
            TEMPLATES, after=listed.after, limit=listed.limit, match=lambda template: listed.fits(template.labels)
        )
        return page([view.encoded(stored) for stored in found], found[-1].record.id if more else None)

    @routes.get(
        "/templates/{template}",
        dependencies=[needs("templates.read")],
        responses=reads(404),
        response_model=wire.Template,
    )
    async def get_template(request: Request, template: TemplateRef) -> Response:
        """One template with all its versions."""
        stored = records.find(TEMPLATES, template)
        return record(request, view.encoded(stored), stored.modified)


def _writing(routes: APIRouter, service: TemplateService, view: TemplateView) -> None:
    @routes.post(
        "/templates",
        dependencies=[needs("templates.create")],
        responses=problems(409),
        response_model=wire.Template,
        status_code=201,
    )
    async def create_template(request: Request, body: wire.TemplateCreate, once: Asked) -> Response:
        """Write a template down with its first version."""
        return _answer(request, view, await once.perform(TEMPLATES, lambda: service.create(body, once)))

    @routes.patch(
        "/templates/{template}",
        dependencies=[needs("templates.update")],
        responses=problems(404, 409, 412),
        response_model=wire.Template,
    )
    async def update_template(
        request: Request, template: TemplateRef, body: wire.TemplateUpdate, held: IfMatch
    ) -> Response:
        """Change a template's words, or which version is taken by default."""
        return _answer(request, view, await service.update(template, body, held))

    @routes.delete(
        "/templates/{template}",
        dependencies=[needs("templates.delete")],
        responses=problems(404, 412),
        status_code=204,
    )
    async def delete_template(template: TemplateRef, held: IfMatch) -> Response:
        """Forget a template. VMs made of it stay."""
        await service.delete(template, held)
        return Response(status_code=204)


def _versions(routes: APIRouter, service: TemplateService, view: TemplateView) -> None:
    @routes.post(
        "/templates/{template}/versions",
        dependencies=[needs("templates.update")],
        responses=problems(404, 409, 412),
        response_model=wire.Template,
        status_code=201,
    )
    async def add_template_version(
        request: Request, template: TemplateRef, body: wire.VersionCreate, held: IfMatch, once: Asked
    ) -> Response:
        """Add a version; those before it stay as they are."""
        outcome = await once.perform(TEMPLATES, lambda: service.add_version(template, body, held, once))
        return _answer(request, view, outcome)

    @routes.delete(
        "/templates/{template}/versions/{number}",
        dependencies=[needs("templates.update")],
        responses=problems(404, 409, 412),
        response_model=wire.Template,
    )
    async def delete_template_version(
        request: Request, template: TemplateRef, number: Number, held: IfMatch
    ) -> Response:
        """Forget a version that is neither the default nor the newest."""
        return _answer(request, view, await service.delete_version(template, number, held))


def _instances(routes: APIRouter, service: TemplateService, view: VmView) -> None:
    @routes.post(
        "/templates/{template}/instantiate",
        dependencies=[needs("vms.create")],
        responses=problems(404, 409, 412, 507),
        response_model=VmList,
        status_code=202,
    )
    async def instantiate_template(
        template: TemplateRef, body: wire.Instantiate, who: Caller, held: IfMatch, once: Asked
    ) -> Response:
        """Make VMs of a template: all of them, or none."""
        made, status = await service.instantiate(template, body, who.name, held, once)
        return Response(view.answered_all(made, once.warnings), status, media_type=JSON)


def _answer(request: Request, view: TemplateView, outcome: Outcome) -> Response:
    stored = outcome.stored
    where = {"location": f"{PREFIX}/templates/{stored.record.id}"} if outcome.status == 201 else None
    return record(request, view.encoded(stored), stored.modified, status=outcome.status, headers=where)
