"""Cuts in the lab's network: frames that the fabric's bridge drops, unnoticed by anybody. Rules are data for nft."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from novacron.lab.failure import LabFailed

Ports = tuple[str, ...]
"""The names that one node's end at the bridge may have."""
Rule = dict[str, Any]
_TABLE = {"family": "bridge", "name": "lab"}
_NFT_S = 10


def ruleset(cut: Sequence[Ports], parted: Sequence[Sequence[Ports]]) -> Rule:
    """All rules, in place of those before: `cut` ends hear and say nothing, those of a pair nothing to each other."""
    commands: list[Rule] = [{"add": {"table": _TABLE}}, {"delete": {"table": _TABLE}}, {"add": {"table": _TABLE}}]
    for name, hook in (("in", "prerouting"), ("out", "postrouting"), ("between", "forward")):
        chain = {"family": "bridge", "table": "lab", "name": name, "type": "filter", "hook": hook, "prio": 0}
        commands.append({"add": {"chain": chain | {"policy": "accept"}}})
    commands += [_drop("in", iifname=ports) for ports in cut]
    commands += [_drop("out", oifname=ports) for ports in cut]
    for one, other in parted:
        commands += [_drop("between", iifname=one, oifname=other), _drop("between", iifname=other, oifname=one)]
    return {"nftables": commands}


def _drop(chain: str, **ends: Ports) -> Rule:
    matches: list[Rule] = [
        {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": {"set": list(ports)}}}
        for key, ports in ends.items()
    ]
    expression = [*matches, {"drop": None}]
    return {"add": {"rule": {"family": "bridge", "table": "lab", "chain": chain, "expr": expression}}}


def apply(rules: Rule) -> None:
    """Put them in force in the network of the calling thread, all at once. :raise LabFailed: nft does not."""
    try:
        done = subprocess.run(
            ["nft", "-j", "-f", "-"],  # noqa: S607 - found by PATH, as everywhere in the lab
            input=json.dumps(rules),
            capture_output=True,
            text=True,
            timeout=_NFT_S,
            check=False,
        )
    except FileNotFoundError as missing:
        raise LabFailed.because("a link can be cut only with nft", "run make setup") from missing
    if done.returncode:
        raise LabFailed.because(f"nft refused the lab's cuts: {done.stderr.strip()}")
