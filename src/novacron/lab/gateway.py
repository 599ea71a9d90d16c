"""The control plane's door on the lab's fabric: takes TLS, passes what is in it to the server's unix socket.

`python -m novacron.lab.gateway --address A --port N --certificate PEM --key PEM --socket PATH`. With it agents dial
the server through their node's link, and lose their line when that is cut.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
import subprocess
from pathlib import Path

from novacron.lab.failure import LabFailed

CHUNK_BYTES = 1 << 16
DAYS = 30
_OPENSSL_S = 30


async def serve(address: str, port: int, certificate: Path, key: Path, socket: Path) -> None:
    """Until cancelled. Each connection has one of its own to the server, and ends with it."""

    async def passing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            onward, back = await asyncio.open_unix_connection(str(socket))
            ways = {asyncio.create_task(_carry(reader, back)), asyncio.create_task(_carry(onward, writer))}
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                back.close()
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with await asyncio.start_server(passing, address, port, ssl=context) as server:
        await server.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


def certify(address: str, certificate: Path, key: Path) -> None:
    """Write a certificate for `address` that vouches for itself, and its key, which its owner alone can read.

    :raise LabFailed: there is no openssl, or it refuses.
    """
    key.touch(mode=0o600)
    # fmt: off
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-days", str(DAYS), "-subj", "/CN=NovaCron lab", "-addext", f"subjectAltName=IP:{address}",
        "-keyout", str(key), "-out", str(certificate),
    ]
    # fmt: on
    try:
        done = subprocess.run(  # noqa: S603 - a list of our own
            command, capture_output=True, text=True, timeout=_OPENSSL_S, check=False
        )
    except FileNotFoundError as missing:
        raise LabFailed.because("a lab whose agents dial over the fabric needs openssl", "run make setup") from missing
    if done.returncode:
        raise LabFailed.because(f"openssl made no certificate: {done.stderr.strip()}")


def main() -> None:
    """Serve until ended by a signal."""
    parser = argparse.ArgumentParser(prog="python -m novacron.lab.gateway", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    given = parser.parse_args()
    asyncio.run(serve(given.address, given.port, given.certificate, given.key, given.socket))


if __name__ == "__main__":
    main()
