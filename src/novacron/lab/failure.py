"""What goes wrong in the lab itself, as opposed to the product it runs."""

from __future__ import annotations

from typing import ClassVar

from novacron.errors import NovaCronError, Reason


class LabFailed(NovaCronError):
    """The lab could not be built, or what runs in it did not do what was expected."""

    code: ClassVar[str] = "lab_failed"

    @classmethod
    def because(cls, message: str, remedy: str = "") -> LabFailed:
        """One sentence and what to do about it."""
        return cls(message, [Reason("lab.failed", message, remedy=remedy)] if remedy else ())
