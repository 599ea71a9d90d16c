"""Imports: fetched over https from a real TLS server, from nowhere a tenant must not lead the server to."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from novacron.control.images import remote
from novacron.errors import InvalidInput
from novacron.model.image import FilePhase
from novacron.model.image import Image as Record
from tests.control.images_house import MIB, PATH, ImageHouse, image_house, problem_of, sha, streamed_vmdk

pytestmark = pytest.mark.anyio

DISK = b"\xeb\x63" + os.urandom(2 * MIB - 2)
Answers = Callable[[str, dict[str, str]], tuple[str, bytes]]
"""Path and headers → the head's lines after `HTTP/1.1 `, and the body."""


class Elsewhere:
    """A TLS server on loopback that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, tuple[str, bytes]] = {}
        self.port = 0
        self.hold = asyncio.Event()
        self.hold.set()

    def url(self, path: str = "/disk", host: str = "localhost") -> str:
        return f"https://{host}:{self.port}{path}"

    def gives(self, path: str, body: bytes, head: str | None = None) -> None:
        self.answers[path] = (head or f"200 OK\r\nContent-Length: {len(body)}", body)

    def redirects(self, path: str, to: str) -> None:
        self.answers[path] = (f"302 Found\r\nLocation: {to}\r\nContent-Length: 0", b"")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            self.asked.append(path)
            answer, body = self.answers.get(path, ("404 Not Found\r\nContent-Length: 0", b""))
            writer.write(f"HTTP/1.1 {answer}\r\n\r\n".encode() + body[: MIB // 2])
            await writer.drain()
            await self.hold.wait()
            writer.write(body[MIB // 2 :])
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    subprocess.run([openssl, *words, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@pytest.fixture
async def elsewhere(certificate: tuple[Path, Path]) -> AsyncIterator[Elsewhere]:
    made = Elsewhere()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        made.hold.set()
        server.close()


@pytest.fixture
async def house(tmp_path: Path, certificate: tuple[Path, Path], elsewhere: Elsewhere) -> AsyncIterator[ImageHouse]:
    allow = (f"localhost:{elsewhere.port}",)
    async with image_house(tmp_path, tmp_path / "pool", allow=allow, ca_file=certificate[0]) as made:
        yield made


async def ask(house: ImageHouse, image: str, url: str, **more: Any) -> Any:
    return await house.http.post(f"{PATH}/{image}/files/disk/import", json={"url": url, **more})


def settled(image: Record) -> bool:
    return all(task.phase is FilePhase.FAILED for task in image.tasks)


async def outcome(house: ImageHouse, url: str, **more: Any) -> Record:
    """The image once the import has ended."""
    image = await house.make(f"i-{house.records.revision}")
    answer = await ask(house, image, url, **more)
    assert answer.status_code == 202, answer.text
    assert [task["phase"] for task in answer.json()["tasks"]] == ["fetching"]
    return await house.until(image, settled)


def failure(image: Record) -> str:
    (task,) = image.tasks
    assert (task.phase, image.files) == (FilePhase.FAILED, ())
    assert task.problem is not None
    return task.problem.code


async def test_a_file_comes_from_elsewhere(house: ImageHouse, elsewhere: Elsewhere) -> None:
    elsewhere.gives("/disk", DISK)
    image = await outcome(house, elsewhere.url(), sha256=sha(DISK).upper())
    assert [(file.digest, file.size_bytes) for file in image.files] == [(sha(DISK), len(DISK))]
    assert image.tasks == ()
    await house.tidied()
    assert house.files() == {sha(DISK)}


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
async def test_what_comes_is_converted_as_an_upload_is(house: ImageHouse, elsewhere: Elsewhere, tmp_path: Path) -> None:
    elsewhere.gives("/disk", streamed_vmdk(tmp_path, DISK))
    image = await outcome(house, elsewhere.url())
    assert [str(file.source_format) for file in image.files] == ["vmdk"]
    await house.tidied()


async def test_without_a_length_and_in_chunks(house: ImageHouse, elsewhere: Elsewhere) -> None:
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in (DISK[:MIB], DISK[MIB:])) + b"0\r\n\r\n"
    elsewhere.gives("/chunks", chunked, "200 OK\r\nTransfer-Encoding: chunked")
    elsewhere.gives("/bare", DISK, "200 OK\r\nConnection: close")
    for path in ("/chunks", "/bare"):
        image = await outcome(house, elsewhere.url(path), sha256=sha(DISK))
        assert [file.digest for file in image.files] == [sha(DISK)], image.tasks


async def test_progress_is_told(house: ImageHouse, elsewhere: Elsewhere) -> None:
    elsewhere.gives("/disk", DISK)
    elsewhere.hold.clear()
    image = await house.make()
    await ask(house, image, elsewhere.url())
    seen = await house.until(image, lambda one: bool(one.tasks and one.tasks[0].done_bytes))
    assert (seen.tasks[0].done_bytes, seen.tasks[0].size_bytes) == (MIB // 2, len(DISK))
    shown = (await house.http.get(f"{PATH}/{image}")).json()["tasks"][0]
    assert (shown["done_bytes"], shown["url"]) == (MIB // 2, elsewhere.url())
    elsewhere.hold.set()
    await house.until(image, lambda one: bool(one.files))


@pytest.mark.parametrize("how", ["file", "image", "another"])
async def test_stopped_it_leaves_nothing(house: ImageHouse, elsewhere: Elsewhere, how: str) -> None:
    elsewhere.gives("/disk", DISK)
    elsewhere.gives("/other", DISK[:MIB])
    elsewhere.hold.clear()
    image = await house.make()
    await ask(house, image, elsewhere.url())
    await house.until(image, lambda one: bool(one.tasks and one.tasks[0].done_bytes))
    if how == "file":
        answer = await house.http.delete(f"{PATH}/{image}/files/disk")
        assert (answer.status_code, answer.json()["tasks"]) == (200, [])
        problem_of(await house.http.delete(f"{PATH}/{image}/files/disk"), 404, "not_found")
    elif how == "image":
        assert (await house.http.delete(f"{PATH}/{image}")).status_code == 204
    else:
        await ask(house, image, elsewhere.url("/other"))
        elsewhere.hold.set()
        await house.until(image, lambda one: bool(one.files))
    await house.tidied()
    assert house.files() == ({sha(DISK[:MIB])} if how == "another" else set())


async def test_a_server_that_ended_in_the_middle_begins_again(
    tmp_path: Path, certificate: tuple[Path, Path], elsewhere: Elsewhere
) -> None:
    elsewhere.gives("/disk", DISK)
    elsewhere.hold.clear()
    allow = (f"localhost:{elsewhere.port}",)
    async with image_house(tmp_path, tmp_path / "pool", allow=allow, ca_file=certificate[0]) as before:
        image = await before.make()
        await ask(before, image, elsewhere.url())
        await before.until(image, lambda one: bool(one.tasks and one.tasks[0].done_bytes))
    elsewhere.hold.set()
    async with image_house(tmp_path, tmp_path / "pool", allow=allow, ca_file=certificate[0]) as after:
        await after.until(image, lambda one: bool(one.files))
        await after.tidied()
        assert after.files() == {sha(DISK)}


# -- what is refused -------------------------------------------------------------------------------------------------


async def test_other_bytes_than_expected(house: ImageHouse, elsewhere: Elsewhere) -> None:
    elsewhere.gives("/disk", DISK)
    assert failure(await outcome(house, elsewhere.url(), sha256="0" * 64)) == "image.digest"
    await house.tidied()
    assert house.files() == set()


async def test_it_is_inspected_as_an_upload_is(house: ImageHouse, elsewhere: Elsewhere) -> None:
    elsewhere.gives("/disk", b"QFI\xfb" + bytes(508))
    assert failure(await outcome(house, elsewhere.url())).startswith("image.")


@pytest.mark.parametrize(
    "head",
    [
        f"200 OK\r\nContent-Length: {2 << 40}",
        f"200 OK\r\nContent-Length: {len(DISK) + 10}",
        "200 OK\r\nTransfer-Encoding: chunked",
        "404 Not Found\r\nContent-Length: 0",
        "206 Partial Content\r\nContent-Length: 5",
        "302 Found\r\nContent-Length: 0",
        "200 OK\r\nX: " + "a" * (64 << 10),
        "never mind",
    ],
)
async def test_answers_that_are_no_file(house: ImageHouse, elsewhere: Elsewhere, head: str) -> None:
    elsewhere.gives("/disk", DISK, head)
    failure(await outcome(house, elsewhere.url()))
    await house.tidied()
    assert house.files() == set()


async def test_redirects_are_followed_five_times_and_checked_each_time(house: ImageHouse, elsewhere: Elsewhere) -> None:
    elsewhere.gives("/5", DISK)
    for number in range(5):
        elsewhere.redirects(f"/{number}", f"/{number + 1}")
    assert (await outcome(house, elsewhere.url("/0"))).files
    elsewhere.redirects("/start", "/0")
    assert failure(await outcome(house, elsewhere.url("/start"))) == "url.redirects"


@pytest.mark.parametrize(
    ("to", "code"),
    [
        ("http://localhost:1/x", "url.scheme"),
        ("file:///etc/passwd", "url.scheme"),
        ("https://127.0.0.1:1/x", "url.address"),
        ("https://169.254.169.254/latest/meta-data", "url.address"),
        ("https://[::1]/x", "url.address"),
        ("https://[::ffff:127.0.0.1]/x", "url.address"),
        ("https://user:pass@localhost/x", "url.user"),
    ],
)
async def test_a_redirect_into_the_servers_own_network(
    house: ImageHouse, elsewhere: Elsewhere, to: str, code: str
) -> None:
    elsewhere.redirects("/disk", to)
    assert failure(await outcome(house, elsewhere.url())) == code
    assert elsewhere.asked == ["/disk"]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://images.example/x", "url.scheme"),
        ("file:///etc/passwd", "url.scheme"),
        ("gopher://images.example/x", "url.scheme"),
        ("ftp://images.example/x", "url.scheme"),
        ("https:///etc/passwd", "url.malformed"),
        ("https://", "url.malformed"),
        ("https://a@images.example/", "url.user"),
        ("https://images.example:0/", "url.malformed"),
        ("https://images.example:99999/", "url.malformed"),
        ("https://ima ges.example/", "url.malformed"),
        ("https://images.example/\r\nHost: x", "url.malformed"),
        ("https://[::1/", "url.malformed"),
    ],
)
def test_urls_that_are_none(url: str, code: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        remote.target_of(url)
    assert refused.value.reasons[0].code == code


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.8", "198.18.0.1", "::", "::1", "fe80::1", "fc00::1",
        "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "2002:7f00:1::", "64:ff9b::7f00:1",
        "64:ff9b:1::1", "2001:0:1::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_dialled(address: str) -> None:
    assert not remote.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "151.101.2.132", "2606:4700::6810:1", "2a04:4e42::644"])
def test_addresses_that_are(address: str) -> None:
    assert remote.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("entry", "is_allowed"),
    [
        ("images.lan", True), ("images.lan:8443", True), ("images.lan:443", False), ("other.lan", False),
        ("10.1.0.0/16", True), ("10.1.2.3", True), ("10.2.0.0/16", False), ("fd00::/8", False), ("", False),
    ],
)  # fmt: skip
def test_what_the_settings_allow(entry: str, is_allowed: bool) -> None:
    target = remote.target_of("https://images.lan:8443/x")
    assert remote.is_allowed(ipaddress.ip_address("10.1.2.3"), target, (entry,)) is is_allowed


async def test_a_name_that_changes_its_address_is_dialled_where_it_was_checked(
    house: ImageHouse, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: public when it is checked, loopback when it is dialled. It is resolved once."""
    loop = asyncio.get_running_loop()
    asked: list[str] = []
    dialled: list[Any] = []

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14" if len(asked) == 1 else "127.0.0.1", port))
        ]

    async def dial(host: Any, port: Any, **_: Any) -> Any:
        dialled.append((host, port))
        raise OSError("the test dials nobody")

    monkeypatch.setattr(loop, "getaddrinfo", resolve, raising=False)
    monkeypatch.setattr(remote.asyncio, "open_connection", dial)
    image = await outcome(house, "https://rebinding.example/disk")
    failure(image)
    assert (asked, dialled) == (["rebinding.example"], [("93.184.215.14", 443)])


async def test_a_name_with_one_private_address_is_refused(house: ImageHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in ("93.184.215.14", "10.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve, raising=False)
    assert failure(await outcome(house, "https://both.example/disk")) == "url.address"


async def test_nothing_but_the_settings_opens_loopback(tmp_path: Path, elsewhere: Elsewhere) -> None:
    elsewhere.gives("/disk", DISK)
    async with image_house(tmp_path, tmp_path / "pool") as closed:
        for host in ("localhost", "127.0.0.1"):
            assert failure(await outcome(closed, elsewhere.url(host=host))) == "url.address"
    assert elsewhere.asked == []


async def test_a_certificate_nobody_vouches_for(tmp_path: Path, elsewhere: Elsewhere) -> None:
    elsewhere.gives("/disk", DISK)
    async with image_house(tmp_path, tmp_path / "pool", allow=("localhost",)) as strict:
        failure(await outcome(strict, elsewhere.url()))
    assert elsewhere.asked == []


async def test_the_environments_proxy_is_not_asked(
    house: ImageHouse, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    elsewhere.gives("/disk", DISK)
    assert (await outcome(house, elsewhere.url())).files
