"""Migrations that wait for their time and hold nothing: what they keep of their request, and how that ends. Pure.

What was decided when it was asked for is decided anew when its time has come (`MigrationService.take_hold`), from what
the record keeps of the request. Until then the VM is free, and others may move, stop or delete it.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator

import msgspec

from novacron.control.migrations.planner import wishes_of
from novacron.errors import PASSING, Busy, NoRoom, NovaCronError, Reason, StateConflict
from novacron.model.bulk_migration import PATIENCE_S
from novacron.model.migration import DiskMove, Migration, MigrationKind, MigrationState, Request, Wishes, waits
from novacron.model.vm import Desired, Problem, Vm
from novacron.wire.rest.migrations import MigrationCreate

FOR_NOW = (NoRoom, StateConflict)
"""Refusals that may pass (a node comes back, a VM is started): waited for as long as by a bulk migration."""


def request_of(asked: MigrationCreate, id_of: Callable[[str, str], str]) -> Request:
    """What the request says. id_of: by field and what is said there (an id or a name), the id."""
    return Request(
        **msgspec.structs.asdict(wishes_of(asked)),
        target_node=id_of("target_node", asked.target_node) if asked.target_node else "",
        kind=asked.kind,
        strategy=asked.strategy,
        policy=id_of("policy", asked.policy) if asked.policy else "",
        pool=id_of("pool", asked.pool) if asked.pool else "",
        disk_pools={id_of("volume", volume): id_of("pool", pool) for volume, pool in asked.disk_pools.items()},
        measure=asked.measure,
        starts_at=asked.starts_at.astimezone(datetime.UTC) if asked.starts_at else None,
        now=asked.now,
    )


def body_of(migration: Migration) -> MigrationCreate:
    """The request again, as it decides what becomes of the migration now."""
    request = migration.request or Request()
    return MigrationCreate(
        **{field: getattr(request, field) for field in Wishes.__struct_fields__},
        vm=migration.vm_id,
        target_node=request.target_node or None,
        kind=request.kind,
        strategy=request.strategy,
        policy=request.policy or None,
        pool=request.pool or None,
        disk_pools=request.disk_pools,
        measure=request.measure,
        starts_at=request.starts_at,
        now=request.now,
        priority=migration.priority,
        labels=migration.labels,
    )


def waiting(decided: Migration, request: Request) -> Migration:
    """The record of a wish: as it would be if it were begun now, without the units that its disks would get."""
    disks = tuple(msgspec.structs.replace(move, to_unit="") for move in decided.disks)
    return msgspec.structs.replace(decided, holds=False, request=request, disks=disks)


def first_of(mine: Iterable[Migration], but: str = "") -> Migration | None:
    """Of a VM's migrations the one that waits. but: not this one."""
    return next((one for one in mine if waits(one) and one.id != but), None)


def check_alone(first: Migration | None) -> None:
    """Whether another may wait: one at a time for a VM. :raise Busy: no."""
    if first is None:
        return
    until = f"{first.not_before:%Y-%m-%d %H:%M} UTC" if first.not_before else "its turn"
    why = f"migration {first.id} of {first.vm_name} waits already, until {until}, and a VM has one that waits at most"
    remedy = f"novacron migration cancel {first.id}, then ask again; a move that begins at once is allowed beside it"
    raise Busy(
        f"cannot have {first.vm_name} wait for a move: {why}",
        [Reason("vm.move_waits", why, subject=first.id, remedy=remedy)],
    )


def decided_anew(old: Migration, fresh: Migration, name: Callable[[str], str]) -> Migration:
    """The record once it has been decided anew: it holds its VM, or waits on, as `fresh` does.

    fresh: decided from its request as if that had come just now, under its id; name: of a node, by id.
    """
    if fresh.holds:
        changes = "; ".join(_changes(old, fresh, name)) or "as when it was asked for"
        told = f"its time came, and it was decided anew at {fresh.created_at:%Y-%m-%d %H:%M} UTC: {changes}"
    else:
        told = f"its window had closed before it could begin, at {fresh.created_at:%Y-%m-%d %H:%M} UTC"
    return msgspec.structs.replace(
        fresh,
        created_at=old.created_at,
        not_before=fresh.not_before or old.not_before,
        request=old.request,
        paced_by=old.paced_by,
        explanation=(told, *fresh.explanation),
    )


def _changes(old: Migration, new: Migration, name: Callable[[str], str]) -> Iterator[str]:
    """What is other than it was decided before, in words."""
    if new.source_node != old.source_node:
        yield f"it is on {name(new.source_node)}, it was on {name(old.source_node)}"
    if new.target_node != old.target_node:
        yield f"target {name(new.target_node)}, it was {name(old.target_node)}"
    if _way(new) != _way(old):
        yield f"{_way(new)}, it was {_way(old)}"
    if _copied(new.disks) != _copied(old.disks):
        yield f"disks to copy: {len(new.disks)}, before {len(old.disks)}, or to another pool"


def _way(migration: Migration) -> str:
    if migration.at_rest:
        return "at rest"
    return f"live, {migration.strategy}" if migration.kind is MigrationKind.LIVE else migration.kind.value


def _copied(moves: Iterable[DiskMove]) -> set[tuple[str, str, str]]:
    return {(move.volume_id, move.from_pool_id, move.to_pool_id) for move in moves}


def is_gone(vm: Vm | None) -> bool:
    """Whether the VM is deleted, or is being: nothing of it will be moved any more."""
    return vm is None or vm.desired is Desired.DELETED


def refused(migration: Migration, error: NovaCronError, vm: Vm | None, now: datetime.datetime) -> Migration | None:
    """The record after it could not take hold of its VM although its time had come; None: nothing is new.

    A VM that is busy is waited for, and so is whatever time may cure; what may pass is waited for as long as a bulk
    migration would; what can never be ends it. The VM is as it was.
    """
    if not waits(migration):
        return None
    if is_gone(vm):
        return without_vm(migration, now)
    before = migration.held_up
    same = before is not None and before.code == error.code
    since = before.at if before is not None and same else now
    for_good = not isinstance(error, (Busy, *PASSING, *FOR_NOW))
    if for_good or (isinstance(error, FOR_NOW) and (now - since).total_seconds() >= PATIENCE_S):
        return _ended(migration, _problem(migration, error, now), now)
    if same and before is not None and before.message == error.message:
        return None
    told = Problem(code=error.code, message=error.message, at=since, remedy=_remedy(error))
    return msgspec.structs.replace(migration, held_up=told, updated_at=now)


def without_vm(migration: Migration, now: datetime.datetime) -> Migration | None:
    """The record once its VM is deleted; None: it does not wait any more."""
    if not waits(migration):
        return None
    message = f"{migration.vm_name} was deleted before its move began"
    return _ended(migration, Problem(code="vm.gone", message=message, at=now, remedy="nothing is left to do"), now)


def _ended(migration: Migration, problem: Problem, now: datetime.datetime) -> Migration:
    return msgspec.structs.replace(
        migration, state=MigrationState.FAILED, problem=problem, held_up=None, updated_at=now, finished_at=now
    )


def _problem(migration: Migration, error: NovaCronError, now: datetime.datetime) -> Problem:
    look = f"novacron vm migrate {migration.vm_name} --dry-run"
    first = _remedy(error)
    remedy = f"{first}; what could be done now: {look}" if first else f"what could be done now: {look}"
    message = f"it could not begin when its time had come, and {migration.vm_name} is as it was: {error.message}"
    return Problem(code=error.code, message=message, at=now, remedy=remedy)


def _remedy(error: NovaCronError) -> str:
    return next((reason.remedy for reason in error.reasons if reason.remedy), "")


def came_free(before: Vm | None, now: Vm) -> bool:
    """Whether a change of the VM may let a move of it begin that could not."""
    if before is None:
        return True
    return _stands(before) != _stands(now)


def _stands(vm: Vm) -> tuple[object, ...]:
    status = vm.observed.status if vm.observed else None
    return (vm.migration_id, vm.task is None, vm.node_id, vm.node_lost, vm.desired, status)
