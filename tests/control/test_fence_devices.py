"""Fence devices: what reads and switches a node's power, against servers that behave as BMCs do."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec
import pytest

from novacron.control.fencing.decide import AGAIN_S, Step, is_due, next_step
from novacron.control.fencing.device import opener
from novacron.control.fencing.redfish import Redfish
from novacron.control.fencing.seal import Seal
from novacron.errors import Conflict, InvalidInput, Reason, Unauthenticated, Unavailable
from novacron.model.fence_device import FenceDevice, FenceDeviceKind, Power, check
from novacron.model.ha import FenceClass, Proof
from novacron.model.membership import Membership, MemberState
from tests.control.bmc import PASSWORD, SYSTEM, USER, Bmc, bmc, certificate

pytestmark = pytest.mark.anyio

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
NODE_ID = "0190b36e-0000-7000-8000-000000000001"


def device(address: str, fingerprint: str = "", **changed: object) -> FenceDevice:
    made = FenceDevice(
        id=NODE_ID,
        kind=FenceDeviceKind.REDFISH,
        address=address,
        user=USER,
        sealed_password="",
        fingerprint=fingerprint,
        created_at=NOW,
        updated_at=NOW,
    )
    return msgspec.structs.replace(made, **changed)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Bmc]:
    with bmc(tmp_path) as made:
        yield made


def reached(there: Bmc, password: str = PASSWORD, **changed: object) -> Redfish:
    return Redfish(device(there.address, there.fingerprint, **changed), password)


# -- Redfish -------------------------------------------------------------------------------------------------------


async def test_power_is_read_and_cut(there: Bmc) -> None:
    switch = reached(there)
    assert await switch.power() is Power.ON
    await switch.off()
    assert there.asked == ["ForceOff"], "never a polite one: the host may not answer"
    assert await switch.power() is Power.OFF


@pytest.mark.parametrize(
    ("said", "power"), [("PoweringOff", Power.CHANGING), ("PoweringOn", Power.CHANGING), ("off", Power.UNKNOWN)]
)
async def test_only_off_is_off(there: Bmc, said: str, power: Power) -> None:
    there.power = said
    assert await reached(there).power() is power


async def test_an_answer_to_off_is_no_proof(there: Bmc) -> None:
    there.obeys = False
    switch = reached(there)
    await switch.off()
    assert there.asked == ["ForceOff"]
    assert await switch.power() is Power.ON


async def test_another_certificate_gets_no_password(there: Bmc) -> None:
    with pytest.raises(Unauthenticated, match=there.fingerprint):
        await Redfish(device(there.address, "ab" * 32), PASSWORD).power()
    with pytest.raises(Unauthenticated, match="no CA"):
        await Redfish(device(there.address), PASSWORD).power()
    assert there.seen_passwords == []


async def test_a_wrong_password_and_a_wrong_system_are_named(there: Bmc) -> None:
    with pytest.raises(Unavailable, match="refuses user novacron") as refused:
        await reached(there, "wrong").power()
    assert "wrong" not in str(refused.value.as_data())
    there.systems = [SYSTEM, "/redfish/v1/Systems/2"]
    with pytest.raises(InvalidInput, match="2 systems") as many:
        await reached(there).power()
    assert "/redfish/v1/Systems/2" in many.value.reasons[0].remedy
    assert await reached(there, system="/redfish/v1/Systems/2").power() is Power.ON


async def test_one_that_is_not_there_says_so() -> None:
    with contextlib.closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable):
            await Redfish(device(f"https://127.0.0.1:{bound.getsockname()[1]}", "ab" * 32), PASSWORD).power()


EMULATOR = shutil.which("sushy-emulator") or shutil.which("sushy-emulator", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(EMULATOR is None, reason="sushy-tools is not installed: pip install sushy-tools")
async def test_the_emulator_of_sushy_tools_is_read_and_switched_off(tmp_path: Path) -> None:
    fingerprint = certificate(tmp_path)
    with contextlib.closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    settings = tmp_path / "emulator.conf"
    pem = str(tmp_path / "bmc.pem")
    one = {"uuid": NODE_ID, "name": "node-1", "power_state": "On", "nics": []}
    settings.write_text(
        f"SUSHY_EMULATOR_LISTEN_IP='127.0.0.1'\nSUSHY_EMULATOR_LISTEN_PORT={port}\nSUSHY_EMULATOR_SSL_CERT={pem!r}\n"
        f"SUSHY_EMULATOR_SSL_KEY={pem!r}\nSUSHY_EMULATOR_FAKE_DRIVER=True\nSUSHY_EMULATOR_FAKE_SYSTEMS=[{one!r}]\n"
        f"SUSHY_EMULATOR_STATE_DIR={str(tmp_path)!r}\n"
    )
    words = [str(EMULATOR), "--config", str(settings), "--fake"]
    with (tmp_path / "emulator.log").open("wb") as log:
        running = subprocess.Popen(words, stdout=log, stderr=log, cwd=tmp_path)
    try:
        switch = Redfish(device(f"https://127.0.0.1:{port}", fingerprint), PASSWORD)
        with anyio.fail_after(30):
            while True:
                try:
                    assert await switch.power() is Power.ON
                    break
                except Unavailable:
                    assert running.poll() is None, (tmp_path / "emulator.log").read_text()
                    await anyio.sleep(0.1)
        with anyio.fail_after(30):
            await switch.off()
            while await switch.power() is not Power.OFF:
                await anyio.sleep(0.1)
    finally:
        running.terminate()
        running.wait(10)


# -- IPMI ----------------------------------------------------------------------------------------------------------


async def test_ipmi_shows_nobody_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tool gets, told by one that answers as ipmitool does; a real BMC is not to be had here."""
    tool = tmp_path / "ipmitool"
    tool.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"out = open({str(tmp_path / 'told')!r}, 'a')\n"
        "file = sys.argv[sys.argv.index('-f') + 1]\n"
        "print(sys.argv[1:], sorted(os.environ), open(file).read(), sep='|', file=out)\n"
        "print('Chassis Power is on' if sys.argv[-1] == 'status' else 'Chassis Power Control: Down/Off')\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    seal = Seal("secret")
    made = seal.closed(device("bmc-1:6230", kind=FenceDeviceKind.IPMI), PASSWORD)
    switch = opener(seal)(made)
    await switch.off()
    assert await switch.power() is Power.ON, "whatever the off command answered"
    for line in (tmp_path / "told").read_text().splitlines():
        words, environment, password = line.split("|")
        assert password == PASSWORD
        assert PASSWORD not in words
        assert "'-I', 'lanplus', '-H', 'bmc-1', '-p', '6230', '-U', 'novacron'" in words
        assert "'PATH'" in environment
        assert "PASSWORD" not in environment


async def test_without_the_tool_ipmi_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    seal = Seal("secret")
    made = seal.closed(device("bmc-1", kind=FenceDeviceKind.IPMI), PASSWORD)
    with pytest.raises(Unavailable, match="not installed"):
        await opener(seal)(made).power()


# -- what is kept --------------------------------------------------------------------------------------------------


def test_a_password_is_sealed_for_one_place_and_one_secret() -> None:
    made = Seal("one").closed(device("https://bmc-1", "ab" * 32), PASSWORD)
    assert PASSWORD.encode() not in msgspec.json.encode(made)
    assert Seal("one").opened(made) == PASSWORD
    for other in (
        msgspec.structs.replace(made, address="https://elsewhere"),
        msgspec.structs.replace(made, fingerprint=""),
        msgspec.structs.replace(made, id="another"),
        msgspec.structs.replace(made, sealed_password="%"),
    ):
        with pytest.raises(Conflict, match="cannot be read"):
            Seal("one").opened(other)
    with pytest.raises(Conflict, match="cannot be read"):
        Seal("two").opened(made)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"address": "http://bmc"}, "address"),
        ({"address": "https://bmc/path"}, "address"),
        ({"address": "https://user@bmc"}, "address"),
        ({"address": "https://bmc", "system": "/redfish/v1/Systems/../x"}, "system"),
        ({"address": "https://bmc", "fingerprint": "ab"}, "fingerprint"),
        ({"address": "-oProxy", "kind": FenceDeviceKind.IPMI}, "address"),
        ({"address": "bmc", "kind": FenceDeviceKind.IPMI, "fingerprint": "ab" * 32}, "fingerprint"),
    ],
)
def test_what_cannot_be_a_device_is_refused_by_name(changed: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check(msgspec.structs.replace(device("x"), **changed), PASSWORD)
    assert refused.value.reasons[0].subject == field
    assert refused.value.reasons[0].remedy


# -- what is done --------------------------------------------------------------------------------------------------


def member(state: MemberState, proof: Proof = Proof.NONE) -> Membership:
    return Membership(
        id="n", state=state, epoch=2, beats=1, ttl_s=15.0, fence_class=FenceClass.TIMER, boot_id="b", proof=proof
    )


def test_power_is_cut_only_of_a_barred_node_that_is_worth_it_and_not_in_a_storm() -> None:
    storm = Reason("fence.storm", "all at once")
    assert is_due(member(MemberState.FENCING), True, None)
    assert is_due(member(MemberState.FENCED), True, None), "it was only waited for: some VMs ask for more"
    assert not is_due(member(MemberState.UP), True, None)
    assert not is_due(member(MemberState.FENCED, Proof.POWER), True, None)
    assert not is_due(member(MemberState.FENCING), False, None)
    assert not is_due(member(MemberState.FENCING), True, storm)


def test_nothing_but_a_power_that_reads_off_is_a_proof() -> None:
    for power in Power:
        for asked_ago_s in (None, 0.0, AGAIN_S, 1e6):
            assert (next_step(power, asked_ago_s) is Step.PROVEN) == (power is Power.OFF)
    assert next_step(Power.ON, None) is next_step(Power.UNKNOWN, AGAIN_S) is Step.SWITCH_OFF
    assert next_step(Power.CHANGING, AGAIN_S - 0.1) is Step.WAIT
