"""Applies nftables transactions and reads sets back, through `nft` with JSON on its standard input."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from novacron.agent.network import tool
from novacron.agent.network.grammar import Command, Table
from novacron.errors import NovaCronError


def is_here() -> bool:
    """Whether there is nft on this node."""
    return tool.find("nft") is not None


async def apply(commands: Sequence[Command]) -> int:
    """All of it or nothing; the process that did it.

    :raise NovaCronError: the kernel refused. :raise Unsupported: there is no nft.
    """
    nft = tool.need("nft", "nftables")
    given = json.dumps({"nftables": list(commands)}).encode()
    done = await tool.run([nft, "-j", "-f", "-"], given)
    if done.code != 0:
        raise NovaCronError(f"nftables refused: {done.words[:500]}")
    return done.pid


async def names_of_sets(table: Table) -> frozenset[str]:
    """Those there are in a table; none when there is no such table."""
    found = await _list("-t", "list", "sets", table.family)
    return frozenset(one["set"]["name"] for one in found if one.get("set", {}).get("table") == table.name)


async def elements(table: Table, names: Sequence[str]) -> dict[str, list[Any]]:
    """What these sets hold now."""
    listed = await asyncio.gather(*(_list("-n", "list", "set", table.family, table.name, name) for name in names))
    return {one["set"]["name"]: one["set"].get("elem", []) for found in listed for one in found if "set" in one}


async def _list(*words: str) -> list[dict[str, Any]]:
    done = await tool.run([tool.need("nft", "nftables"), "-j", *words])
    if done.code != 0:
        raise NovaCronError(f"nftables cannot be read: {done.words[:500]}")
    listed: list[dict[str, Any]] = json.loads(done.output)["nftables"]
    return listed
