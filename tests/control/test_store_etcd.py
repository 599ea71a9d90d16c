"""What only the etcd store promises: a commit sent twice is done once, etcd's troubles are told with a remedy."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import hashlib
import ipaddress
import json
import shutil
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from novacron.control.store import etcd_line, etcd_origin
from novacron.control.store.address import EtcdAddress
from novacron.control.store.base import Change, Delete, Expect, Put
from novacron.control.store.etcd import EtcdStore
from novacron.control.store.etcd_layout import Layout
from novacron.control.store.etcd_watch import Pieces
from novacron.control.store.etcd_words_pb2 import Event, KeyValue
from novacron.errors import (
    Compacted,
    CompareFailed,
    Conflict,
    InvalidInput,
    NotFound,
    StoreCorrupt,
    StoreUnavailable,
)
from tests.etcd_members import Members, members, opened, settled

pytestmark = pytest.mark.anyio
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with members(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def address(etcd: Members, request: pytest.FixtureRequest) -> EtcdAddress:
    return etcd.address(f"t/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}")


@pytest.fixture(autouse=True)
async def _settled() -> AsyncIterator[None]:
    yield
    await settled()


async def history(store: EtcdStore, count: int, after: int = 0) -> list[tuple[Change, ...]]:
    """The next changes, and that there are no more up to a last one made here."""
    watch = store.watch("", after=after)
    await store.commit([Put("zz-last", b"")])
    try:
        async with asyncio.timeout(PATIENCE_S):
            items = [await anext(watch) for _ in range(count + 1)]
    finally:
        await watch.aclose()  # type: ignore[attr-defined]
    assert items.pop()[0].key == "zz-last"
    return items


def gateway(etcd: Members, path: str, body: dict[str, object]) -> dict[str, object]:
    """Ask etcd as an operator would."""
    request = urllib.request.Request(f"http://127.0.0.1:{etcd.ports[0]}/v3/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        said: dict[str, object] = json.load(answer)
        return said


class Proxy:
    """A way to etcd on which answers can be lost. deaf: what etcd answers does not come through."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.deaf = False
        self._calls: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for call in self._calls:
                call.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        for source, sink, answers in ((reader, far_writer, False), (far_reader, writer, True)):
            call = asyncio.create_task(self._pass_on(source, sink, answers))
            self._calls.add(call)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
        try:
            while data := await source.read(1 << 16):
                if not (answers and self.deaf):
                    sink.write(data)
        finally:
            sink.close()


@pytest.fixture
async def lossy(etcd: Members, address: EtcdAddress) -> AsyncIterator[tuple[EtcdStore, Proxy]]:
    """A store that asks through the proxy first, and directly when that is silent."""
    async with opened(address):  # etcd is up
        pass
    proxy = Proxy(etcd.ports[0])
    async with proxy.serving() as port:
        both = (f"127.0.0.1:{port}", *address.endpoints)
        async with opened(EtcdAddress(both, address.prefix)) as store:
            yield store, proxy


# -- a commit whose answer is lost -------------------------------------------------------------------------------


async def test_a_put_whose_answer_is_lost_is_done_once(lossy: tuple[EtcdStore, Proxy]) -> None:
    store, proxy = lossy
    proxy.deaf = True
    revision = await store.commit([Put("a", b"1"), Put("b", b"2")])
    told = await history(store, 1)
    assert told == [(Change(revision, 0, "a", b"1", None), Change(revision, 1, "b", b"2", None))]


async def test_a_comparison_that_was_won_is_not_told_as_lost(lossy: tuple[EtcdStore, Proxy]) -> None:
    store, proxy = lossy
    made = await store.commit([Put("a", b"1")], [Expect("a", 0)])
    proxy.deaf = True
    changed = await store.commit([Put("a", b"2")], [Expect("a", made)])
    entry = await store.get("a")
    assert entry is not None
    assert (entry.value, entry.modified) == (b"2", changed)
    assert len(await history(store, 2)) == 2


async def test_a_deletion_whose_answer_is_lost_has_its_own_revision(lossy: tuple[EtcdStore, Proxy]) -> None:
    store, proxy = lossy
    made = await store.commit([Put("a", b"1")])
    proxy.deaf = True
    assert await store.commit([Delete("a")]) == made + 1
    assert await store.revision() == made + 1


async def test_a_comparison_that_was_lost_for_good_is_told_as_lost(lossy: tuple[EtcdStore, Proxy]) -> None:
    store, proxy = lossy
    made = await store.commit([Put("a", b"1")])
    await store.commit([Put("a", b"2")])
    proxy.deaf = True
    with pytest.raises(CompareFailed, match=f"a is at revision {made + 1}, not at {made}"):
        await store.commit([Put("a", b"3")], [Expect("a", made)])


async def test_an_absence_that_may_come_back_leaves_the_outcome_unknown(lossy: tuple[EtcdStore, Proxy]) -> None:
    """The first try may still be on its way when somebody deletes the key that stands in it now."""
    store, proxy = lossy
    await store.commit([Put("a", b"1")])
    proxy.deaf = True
    with pytest.raises(StoreUnavailable, match="unknown"):
        await store.commit([Put("a", b"2")], [Expect("a", 0)])


async def test_many_commits_at_once_over_a_way_that_loses_answers(lossy: tuple[EtcdStore, Proxy]) -> None:
    store, proxy = lossy
    writing = [asyncio.create_task(store.commit([Put(f"k{number}", b"")])) for number in range(100)]
    await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)
    proxy.deaf = True
    revisions = await asyncio.gather(*writing)
    assert sorted(revisions) == list(range(1, 101))
    assert [item[0].revision for item in await history(store, 100)] == list(range(1, 101))


async def test_a_watch_goes_on_where_it_was_when_its_way_falls_silent(lossy: tuple[EtcdStore, Proxy]) -> None:
    store, proxy = lossy
    watch = store.watch("", after=0)
    await store.commit([Put("k", b"0")])
    assert (await anext(watch))[0].value == b"0"
    proxy.deaf = True
    for number in range(1, 6):
        await store.commit([Put("k", str(number).encode())])
    async with asyncio.timeout(PATIENCE_S):
        assert [(await anext(watch))[0].value for _ in range(5)] == [b"1", b"2", b"3", b"4", b"5"]
    await watch.aclose()  # type: ignore[attr-defined]


async def test_a_watch_leaves_a_silent_member_though_nobody_asks_it(
    lossy: tuple[EtcdStore, Proxy], address: EtcdAddress
) -> None:
    store, proxy = lossy
    watch = store.watch("", after=0)
    await store.commit([Put("k", b"0")])
    assert (await anext(watch))[0].value == b"0"
    proxy.deaf = True
    async with opened(address) as other:
        await other.commit([Put("k", b"1")])
    async with asyncio.timeout(PATIENCE_S):
        assert (await anext(watch))[0].value == b"1"
    await watch.aclose()  # type: ignore[attr-defined]


async def test_a_watch_may_be_cut_off_at_any_moment(address: EtcdAddress) -> None:
    async with opened(EtcdAddress(address.endpoints * 2, address.prefix)) as store:
        watch = store.watch("", after=0)
        hearing = asyncio.ensure_future(anext(watch))
        for turns in range(150):
            store._line._leave(store._line._members[store._line._place])
            for _ in range(turns % 30):
                await asyncio.sleep(0)
            if turns % 10 == 0:
                await store.get("k")  # what is asked meanwhile is answered, too
            await asyncio.sleep(etcd_line.PAUSE_S / 20 * (turns % 3))
        await store.commit([Put("k", b"1")])
        async with asyncio.timeout(PATIENCE_S):
            assert (await hearing)[0].value == b"1"
        await watch.aclose()  # type: ignore[attr-defined]


# -- several processes on one store ------------------------------------------------------------------------------


async def test_two_servers_see_each_other_and_count_alike(address: EtcdAddress) -> None:
    async with opened(address) as one, opened(address) as other:
        first = await one.commit([Put("a", b"1")])
        second = await other.commit([Put("a", b"2")], [Expect("a", first)])
        assert await one.revision() == second == 2
        with pytest.raises(CompareFailed):
            await one.commit([Put("a", b"3")], [Expect("a", first)])
        assert await history(one, 2) == [
            (Change(1, 0, "a", b"1", None),),
            (Change(2, 0, "a", b"2", b"1"),),
        ]


async def test_what_others_keep_in_the_same_etcd_is_neither_counted_nor_seen(address: EtcdAddress) -> None:
    neighbour = EtcdAddress(address.endpoints, address.prefix + "0")
    async with opened(address) as store, opened(neighbour) as next_door:
        revision = await store.commit([Put("a", b"")])
        await next_door.commit([Put("a", b"x"), Put("b", b"")])
        assert await store.revision() == revision
        assert [entry.key for entry in (await store.list("")).entries] == ["a"]
        assert [item[0].key for item in await history(store, 1)] == ["a"]


async def test_a_store_opened_again_counts_on_and_old_slots_are_cleared(
    address: EtcdAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_origin, "KEPT_SLOTS", 3)
    revisions = [0]
    for _ in range(6):
        async with opened(address) as store:
            assert await store.revision() == revisions[-1]
            revisions.append(await store.commit([Put("a", b"")]))
    assert revisions == sorted(set(revisions))
    async with opened(address) as store:
        assert await store.revision() == revisions[-1]
        low = Layout.under(address.prefix).slots
        asked = etcd_line.RangeRequest(key=low, range_end=low + b"\xff")
        kept, _ = await store._line.ask(etcd_line.RANGE, asked)
        assert len(kept.kvs) == 3


async def test_a_change_whose_former_value_is_forgotten_is_not_told_as_a_creation(address: EtcdAddress) -> None:
    """Another server compacted right up to the change that a watch would go on with."""
    async with opened(address) as store, opened(address) as other:
        await store.commit([Put("a", b"1")])
        await store.commit([Put("a", b"2")])
        await other.compact(2)
        watch = store.watch("", after=1)
        with pytest.raises(Compacted):
            await anext(watch)


async def test_pieces_are_joined_to_whole_revisions() -> None:
    def event(revision: int, key: bytes) -> Event:
        return Event(kv=KeyValue(key=key, mod_revision=revision))

    pieces = Pieces()
    assert pieces.take([event(1, b"a"), event(2, b"a")], more_follow=True) == [[event(1, b"a")]]
    assert pieces.take([event(2, b"b")], more_follow=True) == []
    assert pieces.take([event(2, b"c"), event(3, b"a")], more_follow=False) == [
        [event(2, b"a"), event(2, b"b"), event(2, b"c")],
        [event(3, b"a")],
    ]
    assert pieces.take([], more_follow=False) == []


async def test_a_page_of_large_records_comes_in_parts(address: EtcdAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tuple((name, 1 << 20 if "receive" in name else value) for name, value in etcd_line._OPTIONS)
    monkeypatch.setattr(etcd_line, "_OPTIONS", small)
    async with opened(address) as store:
        for number in range(6):
            await store.commit([Put(f"k{number}", b"x" * 400_000)])
        found, more = [], True
        while more:
            page = await store.list("k", after=found[-1] if found else "")
            found += [entry.key for entry in page.entries]
            more = page.more
        assert found == [f"k{number}" for number in range(6)]


# -- what lies there -------------------------------------------------------------------------------------------


async def test_revisions_begin_after_the_floor(address: EtcdAddress) -> None:
    async with opened(address, "fill", 1000) as store:
        assert await store.revision() == 1000
        assert await store.commit([Put("a", b"")], [Expect("a", 0)]) == 1001
        for stale in (1, 1000 - store._count.start, 1000):  # the second would be etcd's 0: absent
            with pytest.raises(CompareFailed):
                await store.commit([Put("b", b"")], [Expect("b", stale)])
        watch = store.watch("", after=999)
        with pytest.raises(Compacted):
            await anext(watch)


async def test_an_unfinished_copy_is_no_store_and_is_made_anew(address: EtcdAddress) -> None:
    async with opened(address, "fill") as store:
        await store.commit([Put("left", b"")])
    for way in ("serve", "read"):
        with pytest.raises(StoreUnavailable, match="unfinished") as refused:
            async with opened(address, way):  # type: ignore[arg-type]
                pass
        assert "run the migration" in refused.value.reasons[0].remedy
    async with opened(address, "fill") as store:
        assert (await store.list("")).entries == ()
        await store.finish()
    async with opened(address):
        pass
    with pytest.raises(Conflict):
        async with opened(address, "fill"):
            pass


async def test_reading_makes_no_store(address: EtcdAddress) -> None:
    with pytest.raises(NotFound):
        async with opened(address, "read"):
            pass
    async with opened(address, "fill"):
        pass


@pytest.mark.parametrize("origin", [b"no json", b'{"cluster_id": 1, "format": 2}'], ids=["foreign", "newer"])
async def test_what_is_no_store_of_this_program_is_refused(etcd: Members, address: EtcdAddress, origin: bytes) -> None:
    put(etcd, Layout.under(address.prefix).origin, origin)
    with pytest.raises(StoreCorrupt, match=address.prefix):
        async with opened(address):
            pass


async def test_an_etcd_restored_from_a_snapshot_is_refused_but_can_be_read(etcd: Members, address: EtcdAddress) -> None:
    """A restored etcd has another cluster id than the store's origin says."""
    put(etcd, Layout.under(address.prefix).origin, b'{"cluster_id": 1}')
    with pytest.raises(StoreUnavailable, match="not the one in which") as refused:
        async with opened(address):
            pass
    assert "novacron store restore" in refused.value.reasons[0].remedy
    async with opened(address, "read") as store:
        assert [entry async for entry in store.entries(await store.revision())] == []


async def test_another_cluster_behind_a_known_address_is_not_believed(
    address: EtcdAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(address) as store:
        monkeypatch.setattr(etcd_line, "PATIENCE_S", 1.0)
        store._line.cluster_id += 1
        with pytest.raises(StoreUnavailable, match="of another etcd cluster") as refused:
            await store.get("a")
        assert refused.value.reasons[0].code == "store.restored"


async def test_an_etcd_whose_disks_were_put_back_under_a_running_server_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same cluster at the same addresses; what it says is older than what it has said."""
    with members(tmp_path / "etcd") as etcd:
        async with opened(etcd.address()) as store:
            monkeypatch.setattr(etcd_line, "PATIENCE_S", 1.0)
            await store.commit([Put("a", b"1")])
            yesterday = tmp_path / "yesterday"
            await put_back(etcd, yesterday, lambda: shutil.copytree(etcd.home(0), yesterday))
            newest = await store.commit([Put("a", b"2")])
            today = tmp_path / "today"
            await put_back(etcd, yesterday, lambda: etcd.home(0).rename(today))
            for asked in (store.get("a"), store.commit([Put("b", b"3")])):
                with pytest.raises(StoreUnavailable, match="its disks were put back") as refused:
                    await asked
                assert [reason.code for reason in refused.value.reasons] == ["store.restored"]
            await put_back(etcd, today, lambda: shutil.rmtree(etcd.home(0)))
            monkeypatch.undo()
            found = await store.get("a")
            assert found is not None
            assert (found.value, found.modified) == (b"2", newest)


async def put_back(etcd: Members, disk: Path, before: Callable[[], object]) -> None:
    """The member goes on from that disk. before: done while it is down."""
    etcd.kill(0)
    before()
    if not etcd.home(0).exists():
        shutil.copytree(disk, etcd.home(0))
    etcd.start(0)
    await etcd.up(0)


def put(etcd: Members, key: bytes, value: bytes) -> None:
    gateway(etcd, "kv/put", {"key": base64.b64encode(key).decode(), "value": base64.b64encode(value).decode()})


# -- etcd's own limits -------------------------------------------------------------------------------------------


async def test_an_etcd_with_its_default_limits_is_refused_with_the_flags_to_give(tmp_path: Path) -> None:
    with members(tmp_path, flags=()) as server, pytest.raises(StoreUnavailable) as refused:
        async with opened(server.address()):
            pass
    assert "--max-txn-ops 4096 --max-request-bytes 10485760" in refused.value.reasons[0].remedy


async def fill(store: EtcdStore) -> None:
    for _ in range(100):
        await store.commit([Put("a", b"x" * 1_000_000)])


async def test_a_full_etcd_says_what_to_type_and_goes_on_afterwards(tmp_path: Path) -> None:
    flags = (*Members(tmp_path)._flags, "--quota-backend-bytes", str(12 << 20))
    with members(tmp_path / "full", flags=flags) as server:
        async with opened(server.address()) as store:
            with pytest.raises(StoreUnavailable) as refused:
                await fill(store)
            assert refused.value.reasons[0].code == "store.full"
            assert "etcdctl defrag" in refused.value.reasons[0].remedy
            assert await store.get("a") is not None
            await store.compact(await store.revision())
            alarms = gateway(server, "maintenance/alarm", {"action": "GET"})["alarms"]
            assert isinstance(alarms, list)
            gateway(server, "maintenance/defragment", {})
            gateway(server, "maintenance/alarm", {"action": "DEACTIVATE", **alarms[0]})
            assert await store.commit([Put("a", b"1")]) > 1


async def test_no_member_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_line, "PATIENCE_S", 0.5)
    with pytest.raises(StoreUnavailable, match="no etcd member did it in time") as refused:
        async with opened(EtcdAddress(("127.0.0.1:1",))):
            pass
    assert "majority" in refused.value.reasons[0].remedy


# -- TLS ---------------------------------------------------------------------------------------------------------


def certificates(directory: Path) -> dict[str, Path]:
    """A CA, and a certificate for 127.0.0.1 that serves server and client."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer, subject = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("ca", "novacron"))
    base = x509.CertificateBuilder().issuer_name(issuer).not_valid_before(now - datetime.timedelta(hours=1))
    base = base.not_valid_after(now + datetime.timedelta(hours=1))
    ca = base.subject_name(issuer).public_key(ca_key.public_key()).serial_number(1)
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    leaf = base.subject_name(subject).public_key(key.public_key()).serial_number(2)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = leaf.add_extension(names, critical=False)
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    contents = {
        "ca": ca.sign(ca_key, hashes.SHA256()).public_bytes(pem),
        "cert": leaf.sign(ca_key, hashes.SHA256()).public_bytes(pem),
        "key": key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain),
    }
    files = {}
    for name, content in contents.items():
        files[name] = directory / f"{name}.pem"
        files[name].write_bytes(content)
    return files


async def test_over_tls_both_sides_show_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = certificates(tmp_path)
    with members(tmp_path / "tls", files=files) as server:
        address = server.address()
        async with opened(address) as store:
            revision = await store.commit([Put("a", b"1")])
            watch = store.watch("", after=0)
            assert (await anext(watch))[0].revision == revision
            await watch.aclose()  # type: ignore[attr-defined]
        monkeypatch.setattr(etcd_line, "PATIENCE_S", 1.0)
        (tmp_path / "other").mkdir()
        other = certificates(tmp_path / "other")
        for wrong in (
            EtcdAddress(address.endpoints),
            EtcdAddress(address.endpoints, ca=files["ca"]),
            EtcdAddress(address.endpoints, ca=other["ca"], cert=files["cert"], key=files["key"]),
            EtcdAddress(address.endpoints, ca=files["ca"], cert=other["cert"], key=other["key"]),
        ):
            with pytest.raises(StoreUnavailable):
                async with opened(wrong):
                    pass


async def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read ca .*missing\.pem"):
        async with opened(EtcdAddress(("127.0.0.1:1",), ca=tmp_path / "missing.pem")):
            pass


async def test_the_words_are_made_from_their_description() -> None:
    room = Path(etcd_line.__file__).parent
    digest = hashlib.sha256((room / "etcd_words.proto").read_bytes()).hexdigest()
    assert digest in (room / "etcd_words_pb2.py").read_text(), "run scripts/etcd-words .venv"
