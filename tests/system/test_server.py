"""The control plane as a real process: first start, restart, refusals to start, sockets, a clean end, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from websockets.asyncio.client import connect

pytestmark = [pytest.mark.anyio, pytest.mark.system]

WITHIN_S = 30.0


class Server:
    """A server process and what it said."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, said: list[str], directory: Path) -> None:
        self.process = process
        self.url = url
        self.said = said
        self.directory = directory

    @property
    def token(self) -> str:
        return (self.directory / "data" / "admin.token").read_text().strip()

    def client(self, **more: object) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {self.token}"}
        return httpx2.AsyncClient(base_url=self.url, headers=headers, **more)  # type: ignore[arg-type]

    async def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Exit code and what else it wrote."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(WITHIN_S):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


def command(directory: Path, *flags: str) -> list[str]:
    data, pool = str(directory / "data"), str(directory / "pool")
    return [sys.executable, "-m", "novacron.control", "--data-dir", data, "--pool-dir", pool, "--port", "0", *flags]


async def spawn(directory: Path, *flags: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command(directory, *flags), stdout=pipe, stderr=pipe)


@contextlib.asynccontextmanager
async def running(directory: Path, *flags: str) -> AsyncIterator[Server]:
    """A server that is ready; killed at the end if the test did not end it."""
    process = await spawn(directory, *flags)
    said: list[str] = []
    try:
        assert process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            while line := (await process.stdout.readline()).decode().strip():
                said.append(line)
                if line.startswith("ready "):
                    break
        assert said, (await process.communicate())[1].decode()
        yield Server(process, said[-1].removeprefix("ready "), said, directory)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def refused(directory: Path, *flags: str) -> str:
    """What a server says that does not start."""
    process = await spawn(directory, *flags)
    async with asyncio.timeout(WITHIN_S):
        out, err = await process.communicate()
    assert process.returncode == 1, (out, err)
    assert b"ready" not in out
    assert b"Traceback" not in err
    return err.decode()


async def test_first_start_work_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        assert [line for line in server.said if server.token in line] == [server.said[0]]
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
        for name in ("admin.token", "agent.secret", "store.db"):
            assert stat.S_IMODE((tmp_path / "data" / name).stat().st_mode) == 0o600, name
        assert (tmp_path / "pool" / "images").is_dir()
        async with server.client() as http:
            assert (await http.get("/readyz")).json() == {"ready": True}
            made = (await http.post("/api/v1/images", json={"name": "tiny"})).json()
        token = server.token
        code, out, err = await server.end()
        assert (code, out) == (0, "")
        assert token not in err
    async with running(tmp_path) as again:
        assert again.said == [f"ready {again.url}"]  # the token is shown once
        assert again.token == token
        async with again.client() as http:
            assert (await http.get("/api/v1/images/tiny")).json() == made


async def test_what_was_answered_survives_kill_9(tmp_path: Path) -> None:
    async with running(tmp_path) as server, server.client() as http:
        for number in range(5):
            assert (await http.post("/api/v1/images", json={"name": f"i-{number}"})).status_code == 201
        await server.end(signal.SIGKILL)
    async with running(tmp_path) as again, again.client() as http:
        items = (await http.get("/api/v1/images")).json()["items"]
        assert {image["name"] for image in items} == {f"i-{number}" for number in range(5)}


async def test_it_ends_within_seconds_though_somebody_listens(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        url = server.url.replace("http", "ws") + "/api/v1/events"
        async with connect(url, additional_headers={"authorization": f"Bearer {server.token}"}) as socket:
            await socket.send('{"t": "subscribe"}')
            assert '"ready"' in str(await socket.recv())
            async with asyncio.timeout(8):
                assert (await server.end(signal.SIGINT))[0] == 0
        assert socket.close_code == 1012  # service restart


async def test_the_unix_socket_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with running(tmp_path, "--socket", str(path)) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        transport = httpx2.AsyncHTTPTransport(uds=str(path))
        async with httpx2.AsyncClient(transport=transport, base_url="http://novacron") as http:
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/api/v1/vms")).status_code == 401  # the file's mode is no token
        other = tmp_path / "other"
        other.mkdir()
        assert "another server listens" in await refused(other, "--socket", str(path))
        await server.end()
        assert not path.exists()


async def test_what_a_killed_server_left_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with running(tmp_path, "--socket", str(path)) as server:
        await server.end(signal.SIGKILL)
        assert path.exists()
    async with running(tmp_path, "--socket", str(path)) as again:
        assert (await again.end())[0] == 0


async def test_why_it_does_not_start(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        port = server.url.rsplit(":", 1)[1]
        other = tmp_path / "other"
        other.mkdir()
        assert "cannot listen on 127.0.0.1" in await refused(other, "--port", port)
        assert "store" in await refused(tmp_path)  # one server a store
    (other / "data").mkdir(exist_ok=True)
    loose = other / "loose.secret"
    loose.write_text("x" * 64)
    loose.chmod(0o644)
    refusals = {
        ("--host", "0.0.0.0"): "not loopback",
        ("--port", "70000"): "is not a port",
        ("--socket", str(other)): "is no socket",
        ("--socket", "/tmp/" + "x" * 120): "107 bytes",
        ("--agent-secret-file", str(loose)): "can be read by others",
    }

    async def start_in(place: str, flags: tuple[str, str]) -> str:
        (tmp_path / place).mkdir()
        return await refused(tmp_path / place, *flags)

    told = await asyncio.gather(*(start_in(f"d{n}", flags) for n, flags in enumerate(refusals)))
    for said, expected in zip(told, refusals.values(), strict=True):
        assert expected in said
    assert not (tmp_path / "d2" / "data").exists()  # nothing was made, no token was given to nobody


async def test_settings_come_from_a_file_and_flags_count_more(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('log_format = "json"\nport = 1\n')
    async with running(tmp_path, "--config", str(file)) as server:
        code, _, err = await server.end()
        assert code == 0
        assert '"event":"ending; machines run on"' in err.replace(": ", ":")
    file.write_text("colour = 1\n")
    assert "colour" in await refused(tmp_path, "--config", str(file))


async def test_secrets_are_in_no_argument_environment_or_log(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        secret = (tmp_path / "data" / "agent.secret").read_text().strip()
        process = Path("/proc") / str(server.process.pid)
        shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        async with server.client() as http:
            read = b"".join([(await http.get(path)).content for path in ("/metrics", "/api/openapi.json", "/api/docs")])
            await http.get("/api/v1/vms", headers={"authorization": "Bearer nct_guessed\x1b[31m"})
        _, out, err = await server.end()
        everything = shown + read + out.encode() + err.encode()
        assert secret.encode() not in everything
        assert server.token.encode() not in everything
        assert b"\x1b" not in err.encode()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_tls(tmp_path: Path) -> None:
    certificate, key = _self_signed(tmp_path)
    async with running(tmp_path, "--tls-cert", str(certificate), "--tls-key", str(key)) as server:
        assert server.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(certificate))
        async with server.client(verify=context) as http:
            answer = await http.get("/api/v1/vms")
            assert answer.status_code == 200
            assert "max-age" in answer.headers["strict-transport-security"]
        with pytest.raises(httpx2.ConnectError):
            async with server.client() as untrusting:
                await untrusting.get("/healthz")
    (tmp_path / "bad.pem").write_text("no certificate")
    assert "tls_cert" in await refused(tmp_path, "--tls-cert", str(tmp_path / "bad.pem"), "--tls-key", str(key))


def _self_signed(directory: Path) -> tuple[Path, Path]:
    certificate, key = directory / "cert.pem", directory / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    about = ["-days", "1", "-subj", "/CN=novacron test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, *about, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key
