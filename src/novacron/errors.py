"""Every error the system raises: one tree, each with a stable code, an HTTP status and reasons a person can act on.

    NovaCronError
    ├── InvalidInput              422  a field is wrong; `fields` names it and says what would be right
    │   └── ImageRefused          422  an image is corrupt or points outside itself
    ├── GoalsUnmet                422  no way that the goals of a move allow reaches them; a reason for each way
    ├── Malformed                 400  the body is not JSON at all
    ├── MethodNotAllowed          405  the path is known, not with this method
    ├── Unauthenticated           401  no token, or one we do not know
    ├── Forbidden                 403  the token lacks the permission named
    ├── NotFound                  404
    ├── Conflict                  409
    │   ├── NameTaken             409  names are unique among their kind
    │   ├── StateConflict         409  the object's state does not allow this; says state seen and states required
    │   ├── Busy                  409  another task holds the object; says which
    │   ├── StaleGeneration       409  the caller speaks of an ownership that has passed
    │   └── IdempotencyMismatch   409  the key was used before with another body
    ├── PreconditionFailed        412  If-Match names an older revision
    ├── TooLarge                  413  a body or frame is over its bound
    ├── NoRoom                    507  no node can take it; one reason a node
    ├── Unavailable               503
    │   ├── NodeUnreachable       503  the node's line is down or went down during the call
    │   ├── StoreUnavailable      503  the store cannot be read or written
    │   └── NotLeading            503  this server leads no more, and what only a leader may do was not done
    ├── DeadlineExceeded          504  an answer did not come in time; the outcome is unknown
    ├── StoreError                500
    │   ├── CompareFailed         409  a compare-and-swap lost: somebody wrote first
    │   ├── Compacted             410  the asked revision is no longer kept: list again
    │   └── StoreCorrupt          500  a record cannot be read, or the schema is newer than this program
    ├── DriverError               500  a hypervisor refused or failed
    │   ├── MachineDied           500  the process ended by itself; carries what it wrote last
    │   ├── MonitorFailed         500  a monitor command was refused; carries the hypervisor's words
    │   └── Unsupported           422  this node or hypervisor cannot do what was asked; says what is missing
    └── MigrationFailed           500  a step failed; the source runs as before unless the record says otherwise

A *refusal* is data (`Reason`), so that filters, pre-checks and errors speak the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgspec


class Reason(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why something was refused, as data.

    code: stable, for programs (`memory.short`); message: a sentence for people;
    subject: the id or name of what refused (a node, a field path); remedy: what would make it pass.
    """

    code: str
    message: str
    subject: str = ""
    remedy: str = ""


class NovaCronError(Exception):
    """Root of the tree. `message` is one sentence; `reasons` say more, one each."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str, reasons: Iterable[Reason] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.reasons: tuple[Reason, ...] = tuple(reasons)

    def as_data(self) -> dict[str, Any]:
        """The error as it travels: {code, message, reasons}. `from_data` is the inverse."""
        return {
            "code": self.code,
            "message": self.message,
            "reasons": [msgspec.to_builtins(reason) for reason in self.reasons],
        }


class InvalidInput(NovaCronError):
    code = "invalid_input"
    status = 422

    @classmethod
    def field(cls, path: str, message: str, remedy: str = "") -> InvalidInput:
        """One wrong field: the message names it, the reason carries it as `subject`."""
        return cls(f"{path}: {message}", [Reason("field.invalid", message, subject=path, remedy=remedy)])


class ImageRefused(InvalidInput):
    code = "image_refused"


class GoalsUnmet(NovaCronError):
    code = "goals_unmet"
    status = 422


class Malformed(NovaCronError):
    code = "malformed"
    status = 400


class MethodNotAllowed(NovaCronError):
    code = "method_not_allowed"
    status = 405


class Unauthenticated(NovaCronError):
    code = "unauthenticated"
    status = 401


class Forbidden(NovaCronError):
    code = "forbidden"
    status = 403


class NotFound(NovaCronError):
    code = "not_found"
    status = 404


class Conflict(NovaCronError):
    code = "conflict"
    status = 409


class NameTaken(Conflict):
    code = "name_taken"


class StateConflict(Conflict):
    code = "state_conflict"

    @classmethod
    def of(cls, subject: str, seen: str, required: Iterable[str], verb: str) -> StateConflict:
        """`subject` is `seen`; `verb` needs one of `required`."""
        wanted = " or ".join(required)
        return cls(
            f"cannot {verb} {subject}: it is {seen}, and must be {wanted}",
            [Reason("state.conflict", f"state is {seen}", subject=subject, remedy=f"wait until it is {wanted}")],
        )


class Busy(Conflict):
    code = "busy"


class StaleGeneration(Conflict):
    code = "stale_generation"


class IdempotencyMismatch(Conflict):
    code = "idempotency_mismatch"


class PreconditionFailed(NovaCronError):
    code = "precondition_failed"
    status = 412


class TooLarge(NovaCronError):
    code = "too_large"
    status = 413


class NoRoom(NovaCronError):
    code = "no_room"
    status = 507


class Unavailable(NovaCronError):
    code = "unavailable"
    status = 503


class NodeUnreachable(Unavailable):
    code = "node_unreachable"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class NotLeading(Unavailable):
    code = "not_leading"


class DeadlineExceeded(NovaCronError):
    code = "deadline_exceeded"
    status = 504


class StoreError(NovaCronError):
    code = "store_error"


class CompareFailed(StoreError):
    code = "compare_failed"
    status = 409


class Compacted(StoreError):
    code = "compacted"
    status = 410


class StoreCorrupt(StoreError):
    code = "store_corrupt"


class DriverError(NovaCronError):
    code = "driver_error"


class MachineDied(DriverError):
    code = "machine_died"


class MonitorFailed(DriverError):
    code = "monitor_failed"


class Unsupported(DriverError):
    code = "unsupported"
    status = 422


class MigrationFailed(NovaCronError):
    code = "migration_failed"


PASSING = (Unavailable, DeadlineExceeded, CompareFailed)
"""Troubles that time may cure: what met one is kept and tried again."""


def _tree(root: type[NovaCronError]) -> dict[str, type[NovaCronError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


BY_CODE: Mapping[str, type[NovaCronError]] = _tree(NovaCronError)


def from_data(data: Mapping[str, Any]) -> NovaCronError:
    """Rebuild an error that travelled. An unknown code becomes the root class and keeps its words."""
    kind = BY_CODE.get(str(data.get("code")), NovaCronError)
    reasons = msgspec.convert(data.get("reasons", []), list[Reason])
    return kind(str(data.get("message", "")), reasons)
