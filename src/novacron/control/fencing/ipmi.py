"""A BMC that speaks IPMI 2.0, through ipmitool. The password is in a file in memory that only the tool inherits."""

from __future__ import annotations

import asyncio
import os

from novacron.child import heard
from novacron.errors import Reason, Unavailable
from novacron.model.fence_device import FenceDevice, Power, host_and_port

WITHIN_S = 15.0
MAX_WORDS_BYTES = 2048
_ANSWERS = {"Chassis Power is on": Power.ON, "Chassis Power is off": Power.OFF}


class Ipmi:
    """A `Switch` (control.fencing.device)."""

    def __init__(self, device: FenceDevice, password: str) -> None:
        self._device = device
        self._password = password

    async def power(self) -> Power:
        return _ANSWERS.get((await self._run("status")).strip(), Power.UNKNOWN)

    async def off(self) -> None:
        await self._run("off")

    async def _run(self, verb: str) -> str:
        """What the tool says. :raise Unavailable: it is missing, or failed. :raise DeadlineExceeded: it was ended."""
        secret = os.memfd_create("fence", os.MFD_CLOEXEC)
        try:
            os.write(secret, self._password.encode())
            return await self._answer(verb, secret)
        finally:
            os.close(secret)

    async def _answer(self, verb: str, secret: int) -> str:
        process = await self._start(verb, secret)
        ended = await heard(
            process, "ipmitool", within_s=WITHIN_S, answer_bytes=MAX_WORDS_BYTES, words_bytes=MAX_WORDS_BYTES
        )
        said, complained = (one.decode("utf-8", "replace") for one in (ended.answer, ended.words))
        if ended.code != 0:
            words = complained.strip() or said.strip() or f"it ended with {ended.code}"
            raise Unavailable(f"the BMC at {self._device.address} cannot be asked: {words}")
        return said

    async def _start(self, verb: str, secret: int) -> asyncio.subprocess.Process:
        host, port = host_and_port(self._device)
        where = ("-I", "lanplus", "-H", host, "-p", str(port), "-U", self._device.user, "-f", f"/dev/fd/{secret}")
        try:
            return await asyncio.create_subprocess_exec(
                "ipmitool", *where, "-N", "2", "-R", "2", "chassis", "power", verb,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)}, cwd="/", pass_fds=(secret,),
            )  # fmt: skip
        except FileNotFoundError as missing:
            said = "ipmitool is not installed on this server"
            raise Unavailable(
                said, [Reason("ipmitool.missing", said, remedy="install ipmitool on every server")]
            ) from (missing)
