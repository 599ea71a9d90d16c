"""What QEMU's own words mean to us: run state and migration state → a machine's status. Pure."""

from __future__ import annotations

from novacron.model.machine import MachineStatus

GUEST_SHUTDOWN = "guest_shutdown"
IO_ERROR = "io-error"
POSTMIGRATE = "postmigrate"
SHUT_DOWN = "its guest has shut down, and its disks are still being copied"
NOT_BEGUN = "it has not begun to run"

UNDER_WAY = frozenset({"setup", "wait-unplug", "active", "pre-switchover", "device", "cancelling"})
"""Migration states in which a transfer is under way, all of it before any switch to post-copy."""

BROKEN = frozenset({"postcopy-paused", "postcopy-recover", "postcopy-recover-setup"})
"""Migration states of a post-copy without a link, or on the way to another one."""

POSTCOPY = frozenset({"postcopy-active"}) | BROKEN
"""Migration states in which the target has all it needs to run, and not all memory."""

OVER = frozenset({"completed", "failed", "cancelled"})
"""Migration states in which it is not any more."""

_MEANS: dict[str, tuple[MachineStatus, str]] = {
    "running": (MachineStatus.RUNNING, ""),
    "paused": (MachineStatus.PAUSED, ""),
    "prelaunch": (MachineStatus.PAUSED, NOT_BEGUN),
    "suspended": (MachineStatus.PAUSED, "the guest sleeps"),
    "inmigrate": (MachineStatus.INCOMING, ""),
    IO_ERROR: (MachineStatus.STALLED, "a disk could not be read or written; it continues when resumed"),
    "shutdown": (MachineStatus.STOPPED, GUEST_SHUTDOWN),
    "finish-migrate": (MachineStatus.PAUSED, "its last state is being transferred"),
    POSTMIGRATE: (MachineStatus.HANDED_OFF, ""),
    "internal-error": (MachineStatus.STALLED, "QEMU could not go on emulating it; stop it and start it again"),
    "guest-panicked": (MachineStatus.STALLED, "the guest's kernel panicked"),
}


def meaning(run_state: str, *, arriving: bool, sent: bool) -> tuple[MachineStatus, str]:
    """The status and its reason.

    arriving: it was started for a stream and has not been taken over. sent: its state has left, or is about to, and has
    not been reclaimed, so that no pause of it is an ordinary one; and when it has been, `postmigrate` is no more than a
    pause.
    """
    status, reason = _MEANS.get(run_state, (MachineStatus.PAUSED, f"QEMU says {run_state}"))
    if arriving and status is MachineStatus.PAUSED:
        return MachineStatus.INCOMING, ""
    if status in (MachineStatus.HANDED_OFF, MachineStatus.PAUSED):
        return (MachineStatus.HANDED_OFF, "") if sent else (MachineStatus.PAUSED, reason)
    return status, reason
