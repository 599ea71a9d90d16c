"""What the options of `vm create` mean, as the body that is sent."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from novacron.cli.disk_spec import read_number

if TYPE_CHECKING:
    from novacron.client.devices import NicIn
    from novacron.client.vms import StopRequest

MAX_DOCUMENT_BYTES = 65536
NIC_RULE = (
    "user[,forward=GUEST|HOST:GUEST…], bridge=NAME or net=NETWORK[,ip=ADDRESS…][,sg=GROUP…][,no-anti-spoofing], "
    "each with [,mac=MAC][,boot=N] if wished"
)


_LISTS = {"ip": "addresses", "sg": "security_groups"}


class NicType(click.ParamType["dict[str, Any]"]):
    """One `--nic`: what its words mean, as arguments of NicIn."""

    name = "nic"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            return read_nic(str(value))
        except ValueError as wrong:
            self.fail(f"{wrong}; give {NIC_RULE}", param, ctx)


def read_nic(text: str) -> dict[str, Any]:
    """Arguments of NicIn. :raise ValueError: says which word is wrong."""
    nic: dict[str, Any] = {}
    forwards: list[tuple[int, int]] = []
    for word in text.split(","):
        key, separator, value = word.partition("=")
        if word == "user":
            nic["network"] = "user"
        elif key == "bridge" and value:
            nic |= {"network": "bridge", "bridge": value}
        elif key == "net" and value:
            nic |= {"network": "overlay", "net": value}
        elif key in _LISTS and value:
            nic.setdefault(_LISTS[key], []).append(value)
        elif word == "no-anti-spoofing":
            nic["anti_spoofing"] = False
        elif key == "mac" and value:
            nic["mac"] = value.lower()
        elif key == "boot":
            nic["boot_order"] = read_number(value)
        elif key == "forward" and separator:
            forwards.append(_forward(value))
        else:
            raise ValueError(f"{word!r} means nothing here")
    if "network" not in nic:
        raise ValueError(f"{text!r} says neither user, bridge nor net")
    if forwards:
        nic["forwards"] = forwards
    return nic


def _forward(text: str) -> tuple[int, int]:
    """(host port or 0, guest port)."""
    host, separator, guest = text.rpartition(":")
    ports = [host, guest] if separator else ["0", guest]
    if not all(port.isascii() and port.isdecimal() and int(port) <= 65535 for port in ports) or int(guest) == 0:
        raise ValueError(f"{text!r} is not a port to forward")
    return int(ports[0]), int(ports[1])


def nic_in(nic: dict[str, Any]) -> NicIn:
    """What `read_nic` read, as it is sent."""
    from novacron.client.devices import ForwardIn, NicIn

    forwards = tuple(ForwardIn(host_port=host, guest_port=guest) for host, guest in nic.get("forwards", ()))
    return NicIn(**(nic | {"forwards": forwards}))


def stop_request(force: bool, grace_s: float | None) -> StopRequest:
    """How a VM is to be stopped, as it is sent."""
    from novacron.client.vms import StopRequest

    return StopRequest(force=force) if grace_s is None else StopRequest(force=force, deadline_s=grace_s)


def read_document(file: Path | None, what: str) -> str:
    """The text of a file that is sent along; `-` is stdin. :raise click.BadParameter: it is none, or too long."""
    if file is None:
        return ""
    try:
        with sys.stdin.buffer if str(file) == "-" else file.open("rb") as opened:
            content = opened.read(MAX_DOCUMENT_BYTES + 1)
        text = content.decode()
    except OSError as wrong:
        raise click.BadParameter(f"cannot read {file}: {wrong.strerror}", param_hint=what) from wrong
    except UnicodeDecodeError as wrong:
        raise click.BadParameter(f"{file} is not UTF-8 text", param_hint=what) from wrong
    if len(content) > MAX_DOCUMENT_BYTES:
        raise click.BadParameter(f"{file} is longer than {MAX_DOCUMENT_BYTES} bytes", param_hint=what)
    return text


def mebibytes(size_bytes: int, what: str) -> int:
    """Whole MiB. :raise click.BadParameter: it is not a whole number of them."""
    whole, rest = divmod(size_bytes, 1 << 20)
    if rest:
        raise click.BadParameter("memory is counted in whole MiB, as in 512M or 2G", param_hint=what)
    return whole


def merged(labels: dict[str, str], add: Sequence[tuple[str, str]], remove: Sequence[str]) -> dict[str, str]:
    """`labels` with some taken away and some added or replaced."""
    return {key: value for key, value in labels.items() if key not in remove} | dict(add)
