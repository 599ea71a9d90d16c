"""A BMC that speaks Redfish over HTTPS on loopback, with the manners of real ones: it answers first, and may never act.

It is a server of its own in a thread, with a certificate that nobody signed; sushy-tools' emulator, where it is
installed, stands beside it in tests/control/test_fence_devices.py.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER, PASSWORD = "novacron", "correct horse"
SYSTEM = "/redfish/v1/Systems/1"


class Bmc:
    """power: as it reads. obeys: whether it does what it answers to; cuts: what that is, from a
    thread of its own. asked: what it was told to do, or to show."""

    def __init__(self) -> None:
        self.power = "On"
        self.obeys = True
        self.cuts: Callable[[], None] = lambda: None
        self.systems = [SYSTEM]
        self.asked: list[str] = []
        self.seen_passwords: list[str] = []
        self.port = 0
        self.fingerprint = ""

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def get(self, path: str) -> dict[str, object] | None:
        if path == "/redfish/v1/Systems":
            return {"Members": [{"@odata.id": one} for one in self.systems]}
        if path in self.systems:
            action = {"target": f"{path}/Actions/ComputerSystem.Reset"}
            return {"PowerState": self.power, "Actions": {"#ComputerSystem.Reset": action}}
        return None

    def reset(self, kind: str) -> None:
        self.asked.append(kind)
        if self.obeys and kind == "ForceOff":
            self.cuts()
            self.power = "Off"


@contextlib.contextmanager
def bmc(directory: Path) -> Iterator[Bmc]:
    """One that listens; afterwards it does not."""
    made = Bmc()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.fingerprint = certificate(directory)
    context.load_cert_chain(directory / "bmc.pem")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(made))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    made.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def certificate(directory: Path) -> str:
    """A key and a certificate that it signs itself, out of date as many BMCs' are, in bmc.pem; the fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bmc")])
    long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(long_ago)
        .not_valid_after(long_ago + datetime.timedelta(days=365)).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    own_key = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "bmc.pem").write_bytes(own_key + made.public_bytes(pem))
    return hashlib.sha256(made.public_bytes(serialization.Encoding.DER)).hexdigest()


def _handler(device: Bmc) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = device.get(self.path) if self._is_known() else None
            self._say(200 if found else 404 if self._is_known() else 401, found or {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            known = self._is_known()
            if known:
                device.reset(body["ResetType"])
            self._say(204 if known else 401, None)

        def _is_known(self) -> bool:
            told = base64.b64decode(self.headers.get("authorization", "")[6:]).decode()
            device.seen_passwords.append(told)
            return told == f"{USER}:{PASSWORD}"

        def _say(self, status: int, data: dict[str, object] | None) -> None:
            content = json.dumps(data).encode() if data is not None else b""
            self.send_response(status)
            self.send_header("content-type", "application/json")
            if status != 204:
                self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if status != 204 else b"")

        def log_message(self, *args: object) -> None:
            pass

    return Handler
