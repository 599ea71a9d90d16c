"""How a command that works on this host itself ends: its words, or the refusal with its remedies."""

from __future__ import annotations

import sys
from collections.abc import Callable

from novacron.errors import NovaCronError


def told(do: Callable[[], str]) -> int:
    """The exit code: 0: what was done is on stdout, in words; 1: it was refused, and stderr says why and what to do."""
    try:
        said = do()
    except NovaCronError as error:
        remedies = "".join(f"\n  try: {reason.remedy}" for reason in error.reasons if reason.remedy)
        sys.stderr.write(f"error: {error.message}{remedies}\n")
        return 1
    sys.stdout.write(said + "\n")
    return 0
