"""What a record is to its clients: a register with compare-and-swap that is created and deleted. Pure.

A deleted VM is there for a while, `deleting`, and then gone without anybody asking: LEAVING stands for both until
somebody has seen it gone.
"""

from __future__ import annotations

from tests.linear.history import Kind, Op, Outcome

ABSENT = "(absent)"
LEAVING = "(leaving)"


def step(state: str, op: Op) -> str | None:
    """The state after the operation, None when it could not have been answered so in this state.

    One of unknown outcome is taken as having had its effect; that it had none is the caller's other choice.
    """
    if op.outcome is Outcome.MISSING:
        return ABSENT if state in (ABSENT, LEAVING) else None
    if op.kind is Kind.READ:
        return _read(state, op.value)
    if op.outcome is Outcome.REFUSED:
        return _refused(state, op)
    return _written(state, op)


def _read(state: str, value: str) -> str | None:
    if value == ABSENT:
        return ABSENT if state in (ABSENT, LEAVING) else None
    return state if state == value else None


def _refused(state: str, op: Op) -> str | None:
    if op.kind is Kind.CREATE:
        return state if state != ABSENT else None
    return state if op.expected and state != op.expected else None


def _written(state: str, op: Op) -> str | None:
    if op.kind is Kind.CREATE:
        return op.value if state in (ABSENT, LEAVING) else None
    if op.expected and state != op.expected:
        return None
    if state == ABSENT or (op.value == LEAVING and state != LEAVING):
        return None
    return LEAVING if op.kind is Kind.DELETE or state == LEAVING else op.value
