"""Silence for one side only: a filter inside a node's own network, where the lab's links know only both directions."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from novacron.lab.node import Node

TABLE = {"family": "inet", "name": "story"}
NFT_S = 10.0


@contextlib.asynccontextmanager
async def filtered(
    host: Node, hook: Literal["input", "output"], side: Literal["sport", "dport"], ports: Sequence[int]
) -> AsyncIterator[None]:
    """TCP of these ports is dropped on its way into or out of the node, without a word, while the block runs."""
    where = {"family": "inet", "table": "story"}
    chain = {**where, "name": "silence", "type": "filter", "hook": hook, "prio": 0, "policy": "accept"}
    match = {"left": {"payload": {"protocol": "tcp", "field": side}}, "op": "==", "right": {"set": list(ports)}}
    rule = {**where, "chain": "silence", "expr": [{"match": match}, {"drop": None}]}
    _apply(host, [{"add": {"table": TABLE}}, {"add": {"chain": chain}}, {"add": {"rule": rule}}])
    try:
        yield
    finally:
        _apply(host, [{"delete": {"table": TABLE}}])


def _apply(host: Node, commands: list[dict[str, Any]]) -> None:
    text = json.dumps({"nftables": commands})
    done = host.run(
        lambda: subprocess.run(
            ["nft", "-j", "-f", "-"], input=text, text=True, capture_output=True, timeout=NFT_S, check=False
        )
    )
    assert done.returncode == 0, done.stderr
