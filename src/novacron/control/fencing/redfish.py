"""A BMC that speaks Redfish: the state of the power read from its system, the reset action to cut it.

The password is sent only to who shows the certificate that the record names, or one of a trusted CA for that name.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import msgspec

from novacron.control.fencing.https import Answer, ask
from novacron.errors import InvalidInput, NotFound, Reason, Unavailable, Unsupported
from novacron.model.fence_device import FenceDevice, Power, host_and_port

SYSTEMS = "/redfish/v1/Systems"
RESET, FORCE_OFF = "#ComputerSystem.Reset", "ForceOff"
_PATH = re.compile(r"/redfish/[!-\[\]-~]{1,300}")
_STATES = {"On": Power.ON, "Off": Power.OFF, "PoweringOn": Power.CHANGING, "PoweringOff": Power.CHANGING}


class Redfish:
    """A `Switch` (control.fencing.device)."""

    def __init__(self, device: FenceDevice, password: str) -> None:
        self._device = device
        self._host, self._port = host_and_port(device)
        told = base64.b64encode(f"{device.user}:{password}".encode()).decode()
        self._headers = {"authorization": f"Basic {told}", "accept": "application/json", "odata-version": "4.0"}

    async def power(self) -> Power:
        return _STATES.get(str((await self._system())[1].get("PowerState")), Power.UNKNOWN)

    async def off(self) -> None:
        path, system = await self._system()
        action = _object(_object(system, "Actions"), RESET)
        allowed = action.get("ResetType@Redfish.AllowableValues", [FORCE_OFF])
        if not isinstance(allowed, list) or FORCE_OFF not in allowed:
            raise Unsupported(f"the system {path} of {self._device.address} cannot be switched off by force")
        target = action.get("target", f"{path}/Actions/ComputerSystem.Reset")
        await self._ask("POST", _path(target), {"ResetType": FORCE_OFF})

    async def _system(self) -> tuple[str, dict[str, Any]]:
        path = self._device.system or await self._only_system()
        return path, await self._ask("GET", path)

    async def _only_system(self) -> str:
        members = (await self._ask("GET", SYSTEMS)).get("Members")
        paths = [one.get("@odata.id") for one in members if isinstance(one, dict)] if isinstance(members, list) else []
        if len(paths) != 1:
            listed = ", ".join(map(str, paths[:8])) or "none"
            remedy = f"name the one that is the node: {listed}"
            raise InvalidInput.field("system", f"{self._device.address} has {len(paths)} systems", remedy)
        return _path(paths[0])

    async def _ask(self, method: str, path: str, body: dict[str, str] | None = None) -> dict[str, Any]:
        content = msgspec.json.encode(body) if body is not None else b""
        answer = await ask(
            (self._host, self._port), method, path, self._headers, content, fingerprint=self._device.fingerprint
        )
        self._check(answer, path)
        if not answer.content or method == "POST":
            return {}
        try:
            return msgspec.json.decode(answer.content, type=dict[str, Any])
        except msgspec.DecodeError as wrong:
            raise Unavailable(f"what answers at {self._device.address} speaks no Redfish") from wrong

    def _check(self, answer: Answer, path: str) -> None:
        place = self._device.address
        if answer.status in (401, 403):
            said = f"{place} refuses user {self._device.user}: it answers {answer.status}"
            remedy = "check user and password; the user must be allowed to control the power"
            raise Unavailable(said, [Reason("fence_device.refused", said, subject="password", remedy=remedy)])
        if answer.status == 404:
            raise NotFound(f"{place} has no {path}")
        if not 200 <= answer.status < 300:
            raise Unavailable(f"{place} answers {answer.status} to {path}")


def _object(within: dict[str, Any], name: str) -> dict[str, Any]:
    found = within.get(name)
    return found if isinstance(found, dict) else {}


def _path(said: object) -> str:
    """A path on this very device; it may say anything. :raise Unavailable: it is none."""
    if isinstance(said, str) and _PATH.fullmatch(said):
        return said
    raise Unavailable("the BMC names a path that is none of Redfish")
