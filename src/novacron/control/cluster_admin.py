"""Administration of the cluster's CA by hand: make it, and change it with an overlap of old and new.

python -P -m novacron.control.cluster_admin init|issue-server|ca-add|ca-switch|ca-drop: `novacron cluster` becomes it.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from novacron import by_hand
from novacron.clock import SystemClock
from novacron.control.joining import authority
from novacron.control.joining.authority import Authority
from novacron.errors import InvalidInput

LOCAL = ("localhost", "127.0.0.1", "::1")
MAX_HOSTS = 64
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9-]{1,63})*\Z")
_THEN = "restart each server, then wait until every node has renewed its certificate (or `novacron agent renew`)"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 it could not be done (and nothing was changed), 2 wrong flags."""
    flags = _parser().parse_args(arguments)
    return by_hand.told(lambda: _do(flags))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="novacron cluster", description="Look after the cluster's CA.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    init = verbs.add_parser("init", help="make the CA and this server's certificate")
    issue = verbs.add_parser("issue-server", help="make the server's certificate anew, for these names")
    add = verbs.add_parser("ca-add", help="make the next CA, trusted beside the present one")
    switch = verbs.add_parser("ca-switch", help="sign with the next CA from now on")
    drop = verbs.add_parser("ca-drop", help="trust the old CA no more")
    for verb in (init, issue, add, switch, drop):
        verb.add_argument("directory", type=Path, metavar="DIRECTORY", help="as `server run --cluster-dir` is given it")
    for verb in (init, issue):
        verb.add_argument(
            "--host", action="append", default=[], metavar="NAME|ADDRESS", help="of the server; repeatable"
        )
    return parser


def _do(flags: argparse.Namespace) -> str:
    """What was done, in words. :raise NovaCronError"""
    now = SystemClock().wall()
    if flags.verb == "init":
        made = authority.init(flags.directory, checked(flags.host), now)
        return f"cluster CA {made.fingerprint} made; start the server with --cluster-dir {flags.directory}"
    if flags.verb == "issue-server":
        Authority(flags.directory).issue_server(checked(flags.host), now)
        return "the server's certificate was made anew; restart the server"
    if flags.verb == "ca-add":
        return f"the next CA is {authority.add_next(flags.directory, now)}; {_THEN}, then `novacron cluster ca-switch`"
    if flags.verb == "ca-switch":
        return f"CA {authority.switch(flags.directory, now)} signs now; {_THEN}, then `novacron cluster ca-drop`"
    return f"CA {authority.drop_old(flags.directory)} alone is trusted; restart each server"


def checked(hosts: Sequence[str]) -> list[str]:
    """The hosts, and this machine's own names for itself. :raise InvalidInput: one is neither name nor address."""
    for host in hosts:
        if not _is_address(host) and _HOST.match(host) is None:
            raise InvalidInput.field("--host", f"{host!r} is neither a host name nor an IP address", "give one of both")
    if len(hosts) > MAX_HOSTS:
        raise InvalidInput.field("--host", "too many hosts", f"give at most {MAX_HOSTS}")
    return list(dict.fromkeys((*hosts, *LOCAL)))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
