"""Administration of a store by hand: move it, back it up, bring it back. It works on the store itself, not by a server.

python -P -m novacron.control.store_admin migrate|backup|restore, which `novacron store` becomes.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from novacron import by_hand
from novacron.clock import SystemClock
from novacron.control.store import transfer
from novacron.control.store.address import parse
from novacron.control.store.backup_file import Tally

ADDRESS = "sqlite:FILE or etcd://host:port,…/prefix?ca=FILE&cert=FILE&key=FILE"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 1 it could not be done (and what was to be made is not there), 2 wrong flags."""
    flags = _parser().parse_args(arguments)
    return by_hand.told(lambda: asyncio.run(_do(flags)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="novacron store", description="Look after the store itself.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    migrate = verbs.add_parser("migrate", help="move all records to another store; no server may run meanwhile")
    migrate.add_argument("--from", dest="source", required=True, metavar="STORE", help=ADDRESS)
    migrate.add_argument("--to", dest="target", required=True, metavar="STORE", help="the same; nothing may be there")
    backup = verbs.add_parser("backup", help="write all records into a file; servers may go on")
    backup.add_argument("--from", dest="source", required=True, metavar="STORE", help=ADDRESS)
    backup.add_argument("file", type=Path, metavar="FILE", help="a new file, readable for its owner alone")
    restore = verbs.add_parser("restore", help="make a store of a backup; no server may run meanwhile")
    restore.add_argument("file", type=Path, metavar="FILE", help="what `backup` wrote")
    restore.add_argument("--to", dest="target", required=True, metavar="STORE", help=f"{ADDRESS}; nothing may be there")
    return parser


async def _do(flags: argparse.Namespace) -> str:
    """What was done, in words. :raise NovaCronError"""
    clock, rng = SystemClock(), random.SystemRandom()
    if flags.verb == "migrate":
        source, target = parse(flags.source, "--from"), parse(flags.target, "--to")
        tally = await transfer.migrate(source, target, clock, rng)
        return f"{_counted(tally)} moved to {target}; start the server with --store"
    if flags.verb == "backup":
        tally = await transfer.backup(parse(flags.source, "--from"), flags.file, clock, rng)
        return f"{_counted(tally)} written to {flags.file}"
    target = parse(flags.target, "--to")
    tally = await transfer.restore(flags.file, target, clock, rng)
    return f"{_counted(tally)} restored to {target}; each server will ask once whether this is meant (docs/store.md)"


def _counted(tally: Tally) -> str:
    return f"{tally.records} records (sha256 {tally.sha256})"


if __name__ == "__main__":
    sys.exit(main())
