"""How a command ends badly: what is said on stderr, and the exit code.

0 done · 1 failed · 2 wrong usage · 3 not found · 4 conflict · 5 refused · 6 unreachable · 7 deadline · 130 interrupted
"""

from __future__ import annotations

import click

from novacron.cli import safe
from novacron.errors import NovaCronError, Reason, Unauthenticated

FAILED, USAGE, NOT_FOUND, CONFLICT, REFUSED, UNREACHABLE, DEADLINE, INTERRUPTED = 1, 2, 3, 4, 5, 6, 7, 130

_BY_STATUS = {
    400: REFUSED,
    401: REFUSED,
    403: REFUSED,
    404: NOT_FOUND,
    405: REFUSED,
    409: CONFLICT,
    410: CONFLICT,
    412: CONFLICT,
    413: REFUSED,
    422: REFUSED,
    503: UNREACHABLE,
    504: DEADLINE,
    507: REFUSED,
}
_TOKEN_REMEDY = "give --token-file FILE, NOVACRON_TOKEN_FILE or NOVACRON_TOKEN"  # noqa: S105 (no secret)


def exit_code(error: NovaCronError) -> int:
    """What a script sees."""
    return _BY_STATUS.get(error.status, FAILED)


def told(error: NovaCronError) -> list[str]:
    """The error as lines for a person: what was wrong, each reason, what to do."""
    said = [f"error: {safe.line(error.message)}"]
    remedies: list[str] = []
    for reason in error.reasons:
        line = _reason(reason)
        if line not in error.message and reason.message not in error.message:
            said.append(f"  - {safe.line(line)}")
        if reason.remedy and reason.remedy not in remedies:
            remedies.append(reason.remedy)
    if isinstance(error, Unauthenticated):
        remedies = [_TOKEN_REMEDY]
    return said + [f"  try: {safe.line(remedy)}" for remedy in remedies]


def report(error: NovaCronError) -> int:
    """Say it on stderr; returns the exit code."""
    for line in told(error):
        click.echo(line, err=True)
    return exit_code(error)


def _reason(reason: Reason) -> str:
    return f"{reason.subject}: {reason.message}" if reason.subject else reason.message
