"""The API as a bench reads it: with as little work of its own as can be."""

from __future__ import annotations

import asyncio

from tests.bench.scale_server import Server


class Reader:
    """One keep-alive connection; of what is answered only the body is looked at."""

    def __init__(self, served: Server) -> None:
        self._served = served
        self._line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str) -> bytes:
        return await self.ask("GET", path)

    async def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        if self._line is None:
            self._line = await asyncio.open_connection("127.0.0.1", self._served.port, limit=1 << 24)
        reader, writer = self._line
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._served.token}\r\n"
        about = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        writer.write(f"{head}{about}\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length: ", 1)[1].split(b"\r", 1)[0])
        said = await reader.readexactly(length)
        if not answer.startswith(b"HTTP/1.1 2"):
            raise SystemExit(f"{method} {path}: {answer[:60]!r} {said[:300]!r}")
        return said

    def close(self) -> None:
        if self._line is not None:
            self._line[1].close()
