"""What each storage driver must be told: which options, in which form. A pure table; secrets are paths of files."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from novacron.errors import InvalidInput, Reason
from novacron.model.pool import PoolDriver
from novacron.model.unit import units_of

MAX_LENGTH = 512


class Form(msgspec.Struct, frozen=True):
    """How a value must look; `rule` says it to people."""

    pattern: str
    rule: str

    def fits(self, value: str) -> bool:
        return len(value) <= MAX_LENGTH and re.fullmatch(self.pattern, value, re.ASCII) is not None


class Option(msgspec.Struct, frozen=True):
    form: Form
    is_needed: bool = False


_PART = r"(?:[A-Za-z0-9._@+=-]*[A-Za-z0-9_@+=-])"
PATH = Form(
    rf"(?:/(?!\.\.?(?:/|$)){_PART})+",
    "an absolute path on the nodes, of letters, digits and . _ @ + = -, as in /srv/vms",
)
FILE = Form(PATH.pattern, "the absolute path of a file on the nodes (the secret itself is never told to NovaCron)")
HOST = Form(
    r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]",
    "a host name, an IPv4 address, or an IPv6 address in brackets",
)
PORTAL = Form(rf"(?:{HOST.pattern})(?::[0-9]{{1,5}})?", "host or host:port, as in 192.0.2.7:3260")
WORD = Form(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}", "a name of letters, digits and _ . + -")
IQN = Form(r"(?:iqn|eui|naa)\.[A-Za-z0-9.:-]{1,220}", "an iSCSI name, as in iqn.2026-01.example:disks")
NUMBER = Form(r"[0-9]{1,9}", "a whole number")
UNITS = Form(r"[A-Za-z0-9_.+,-]+", "the ready-made units, one a volume: names and ranges, as in 1-8 or disk-a,disk-b")
SOCKET = Form(rf"(?:{PORTAL.pattern})|{PATH.pattern}", "host:port, or the absolute path of a unix socket on the nodes")


def _need(form: Form) -> Option:
    return Option(form, is_needed=True)


TABLE: Mapping[PoolDriver, Mapping[str, Option]] = {
    PoolDriver.DIRECTORY: {"path": Option(PATH)},  # without: the directory each agent was started with
    PoolDriver.NFS: {"path": _need(PATH), "server": Option(HOST), "export": Option(PATH)},
    PoolDriver.LVM_THIN: {"volume_group": _need(WORD), "thin_pool": _need(WORD)},
    PoolDriver.CEPH_RBD: {
        "pool": _need(WORD),
        "conf": Option(FILE),
        "user": Option(WORD),
        "keyring": Option(FILE),
        "namespace": Option(WORD),
    },
    PoolDriver.ISCSI: {
        "portal": _need(PORTAL),
        "target": _need(IQN),
        "units": _need(UNITS),
        "initiator": Option(IQN),
        "user": Option(WORD),
        "password_file": Option(FILE),
    },
    PoolDriver.NBD: {"address": _need(SOCKET), "units": _need(UNITS)},
}
"""By driver: every option it knows. The default pool has none: its directory is told to each agent as it starts."""


def check(driver: PoolDriver, options: Mapping[str, str]) -> None:
    """:raise InvalidInput: an option is missing, unknown or ill-formed; one reason for each, naming `options.<key>`."""
    known = TABLE[driver]
    wrong = [
        Reason("field.invalid", "is needed", f"options.{key}", f"give {option.form.rule}")
        for key, option in known.items()
        if option.is_needed and key not in options
    ]
    for key, value in options.items():
        if key not in known:
            remedy = f"{driver.value} takes {', '.join(known)}"
            wrong.append(Reason("field.invalid", "is not an option of this driver", f"options.{key}", remedy))
        elif not known[key].form.fits(value):
            wrong.append(Reason("field.invalid", "is ill-formed", f"options.{key}", f"give {known[key].form.rule}"))
    if wrong:
        raise InvalidInput(f"{wrong[0].subject}: {wrong[0].message}", wrong)
    if "units" not in known:
        return
    units = units_of(options)
    if driver is PoolDriver.ISCSI and not all(unit.isdecimal() for unit in units):
        raise InvalidInput.field("options.units", "holds something else than numbers", "give LUNs, as in 1-8")


def only_adds_units(old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Whether all that changes is that a pool made of units has more of them. Both have been checked."""
    if "units" not in old or {**old, "units": ""} != {**new, "units": ""}:
        return False
    return set(units_of(old)) <= set(units_of(new))
