"""Joining by hand: `novacron agent join` gets a node its first certificate, `novacron agent renew` the next one.

python -m novacron.agent.join join URL --token-file FILE --node-name NAME --state-dir DIR
python -m novacron.agent.join renew URL --state-dir DIR
"""

from __future__ import annotations

import argparse
import contextlib
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from novacron import by_hand
from novacron.agent import credentials, enrolment, renewer
from novacron.agent.credentials import Badge
from novacron.agent.main import locked, own_id
from novacron.clock import SystemClock
from novacron.errors import Conflict, InvalidInput, Reason
from novacron.model.identity import check_name
from novacron.wire import joining as wire

MAX_TOKEN_BYTES = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 refused or not reached (what was there before counts on), 2 wrong flags."""
    flags = _parser().parse_args(arguments)
    return by_hand.told(lambda: _join(flags) if flags.verb == "join" else _renew(flags))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="novacron agent", description="Have this host take part in a cluster.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    join = verbs.add_parser("join", help="get this node's first certificate, by a join token")
    join.add_argument(
        "--token-file", type=Path, required=True, help="what `novacron node token create` printed; - stdin"
    )
    join.add_argument("--node-name", required=True, help="the node's name in the cluster")
    renew = verbs.add_parser("renew", help="get this node's next certificate now; its agent may run")
    for verb in (join, renew):
        verb.add_argument("server", metavar="URL", help="https://host:port of a server")
        verb.add_argument("--state-dir", type=Path, required=True, help="the agent's state directory")
    return parser


def _join(flags: argparse.Namespace) -> str:
    """What was done, in words. The agent must not run meanwhile. :raise NovaCronError"""
    enrolment.check_server(flags.server)
    check_name(flags.node_name, "node_name")
    secret, fingerprint = read_token(flags.token_file)
    clock = SystemClock()
    with locked(flags.state_dir):
        node_id = own_id(flags.state_dir, clock)
        key_pem, csr_pem = credentials.request(node_id, flags.node_name, secret)
        ask = wire.Join(token=secret, node_id=node_id, node_name=flags.node_name, csr_pem=csr_pem)
        issued = enrolment.join(flags.server, ask, fingerprint, lambda: clock.wall().timestamp())
        Badge(flags.state_dir).keep(issued, key_pem)
    return f"node {flags.node_name} has joined; run its agent: novacron agent run --server {flags.server} …"


def _renew(flags: argparse.Namespace) -> str:
    enrolment.check_server(flags.server)
    badge = Badge(flags.state_dir)
    if not badge.is_there:
        remedy = "join first: `novacron agent join`"
        reason = Reason("identity.none", "it has no certificate", subject="state_dir", remedy=remedy)
        raise Conflict(f"no node has joined from {flags.state_dir}", [reason])
    renewer.renew([flags.server], badge, own_id(flags.state_dir, SystemClock()))
    return f"renewed until {badge.certificate().not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"


def read_token(file: Path) -> tuple[str, str]:
    """A join token's secret and its CA's fingerprint. :raise InvalidInput: there is none, or everybody can read it."""
    try:
        if str(file) == "-":
            text = sys.stdin.read(MAX_TOKEN_BYTES)
        else:
            if stat.S_IMODE(file.stat().st_mode) & 0o007:
                raise InvalidInput.field("token_file", f"{file} is open to every user", f"chmod 600 {file}")
            with file.open() as opened:
                text = opened.read(MAX_TOKEN_BYTES)
    except (OSError, UnicodeDecodeError) as wrong:
        raise InvalidInput.field("token_file", f"cannot read {file}: {wrong}", "give a readable file") from wrong
    parted = wire.parted(text.strip())
    if parted is None:
        remedy = "write what `novacron node token create` printed into it, unchanged"
        raise InvalidInput.field("token_file", f"{file} holds no join token", remedy)
    return parted


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
