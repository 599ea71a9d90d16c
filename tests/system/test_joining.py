"""Nodes that joined by command: certificates renewed under open lines and running migrations, revoked at once."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator

import pytest

from novacron.agent import credentials
from novacron.client import migrations, nodes, vms
from novacron.control.joining import authority, certificates
from tests.system.joined_site import Site, a_site, command, join, token_of
from tests.system.spine import END_S, a_vm, begin_slowly, its_node_answers, living_copies, needs_guest, ticks_on

pytestmark = [pytest.mark.anyio, pytest.mark.system]

NODE = "01890000-0000-7000-8000-000000000003"
CRAWL = 64 << 10  # bytes/s: less than the guest writes, so that it streams until it is given more


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with a_site(with_image=False) as made:
        yield made


async def test_certificates_are_renewed_under_an_open_line_and_by_hand(site: Site) -> None:
    first = {name: site.serial(name) for name in site.lab.nodes}
    for name, serial in first.items():
        await site.renewed(name, serial)
    second = site.serial("node-1")
    code, out, err = await command("agent", "renew", site.lab.server, "--state-dir", str(site.state("node-1")))
    assert code == 0, err
    assert "renewed until" in out
    assert site.serial("node-1") != second
    await site.renewed("node-2", site.serial("node-2"))  # the first one has expired by now
    assert [site.lines_opened(name) for name in site.lab.nodes] == [1, 1]
    site.lab.children["node-1"].kill()
    site.lab.children["node-1"].start_again()
    async with asyncio.timeout(END_S):
        while site.lines_opened("node-1") < 2:
            await asyncio.sleep(0.05)


async def test_refusals_say_what_to_do(site: Site) -> None:
    token = await token_of(site.lab)
    assert (await join(site.lab, "node-3", token))[0] == 0
    code, _, err = await join(site.lab, "node-4", token)
    assert code == 1
    assert "used already, by node node-3" in err
    assert "novacron node token create" in err
    code, _, err = await join(site.lab, "node-4", token.partition(".")[0] + "." + "0" * 64)
    assert code == 1
    assert "another fingerprint" in err
    code, _, err = await join(site.lab, "node-1", await token_of(site.lab))
    assert code == 1  # its agent runs
    assert "Traceback" not in err
    await _show_a_strangers_certificate(site)
    log = site.lab.children["server"].log.read_text()
    assert "join_token.used" in log
    assert "certificate.ca" in log
    assert token.partition(".")[0] not in log


async def _show_a_strangers_certificate(site: Site) -> None:
    """As node-3, which trusts the server still."""
    now = datetime.datetime.now(datetime.UTC)
    stranger = authority.init(site.lab.path / "stranger", ["localhost"], now)
    key_pem, csr_pem = credentials.request(NODE, "node-3")
    lasts = datetime.timedelta(days=1)
    made = stranger.sign(certificates.request_of(csr_pem), (NODE, 1, "node-3"), now, lasts)
    folder = site.state("node-3") / "identity"
    (folder / "node.pem").write_bytes(key_pem + certificates.pem_of(made).encode())
    code, _, err = await command("agent", "renew", site.lab.server, "--state-dir", str(site.state("node-3")))
    assert code == 1
    assert "Traceback" not in err
    assert "try:" in err


async def test_a_revoked_node_is_out_at_once_and_comes_back_by_a_new_token(site: Site) -> None:
    child = site.lab.children["node-1"]
    await site.lab.client.do(nodes.revoke("node-1"))
    async with asyncio.timeout(END_S):
        while "certificate.revoked" not in site.lab.children["server"].log.read_text():
            await asyncio.sleep(0.05)
        while "it was revoked" not in child.log.read_text():
            await asyncio.sleep(0.05)
    assert site.lines_opened("node-1") == 1
    await child.stop()
    code, _, err = await join(site.lab, "node-1", await token_of(site.lab, "node-1"))
    assert code == 0, err
    child.start_again()
    async with asyncio.timeout(END_S):
        while site.lines_opened("node-1") < 2:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("_", [pytest.param(0, marks=needs_guest)])
async def test_no_vm_is_dropped_when_certificates_change_while_it_moves(_: int) -> None:
    async with a_site() as site, a_vm(site.lab) as vm:
        await ticks_on(site.lab, vm.id)
        pids = living_copies(vm.id)
        before = {name: site.serial(name) for name in site.lab.nodes}
        moving = await begin_slowly(site.lab, vm)
        await site.lab.client.do(migrations.set_bandwidth(moving.id, CRAWL))
        for name, serial in before.items():
            await site.renewed(name, serial)
        await site.renewed("node-1", site.serial("node-1"))  # what the lines were opened with has expired
        state = (await site.lab.client.do(migrations.get(moving.id))).state
        assert state == "transferring"
        assert living_copies(vm.id)[:1] == pids[:1]
        await site.lab.client.do(migrations.set_bandwidth(moving.id, 1 << 30))
        done = await site.lab.client.wait_migration(moving.id, deadline_s=END_S)
        assert done.state == "completed"
        await ticks_on(site.lab, vm.id)
        assert [site.lines_opened(name) for name in site.lab.nodes] == [1, 1]
        await _revoke_and_let_back(site, vm.id)


async def _revoke_and_let_back(site: Site, vm_id: str) -> None:
    """A node that is cut off from the server keeps its VM, and has it still when it comes back."""
    owner = (await site.lab.client.do(vms.get(vm_id))).node
    assert owner is not None
    pids = living_copies(vm_id)
    assert len(pids) == 1
    child = site.lab.children[owner]
    await site.lab.client.do(nodes.revoke(owner))
    async with asyncio.timeout(END_S):
        while "it was revoked" not in child.log.read_text():
            await asyncio.sleep(0.05)
    await child.stop()
    assert (await join(site.lab, owner, await token_of(site.lab, owner)))[0] == 0
    child.start_again()
    await its_node_answers(site.lab, vm_id)
    await ticks_on(site.lab, vm_id)
    assert living_copies(vm_id) == pids
