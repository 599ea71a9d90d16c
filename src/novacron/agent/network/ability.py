"""Whether this node can have networks that span nodes, and what is missing if not."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from novacron.agent.network import tool
from novacron.errors import Reason, Unsupported

OVERLAY = "overlay"
_LOADED, _LOADABLE = Path("/sys/module"), Path("/lib/modules")
_LISTS = ("modules.dep", "modules.builtin")


def missing(loaded: Path = _LOADED, loadable: Path = _LOADABLE) -> list[Reason]:
    """What keeps it from that; empty: nothing. Looks only, and changes nothing."""
    found = []
    if os.geteuid() != 0:
        found.append(Reason("overlay.unprivileged", "the agent is not root", OVERLAY, "run the agent as root"))
    for program, package in (("nft", "nftables"), ("dnsmasq", "dnsmasq-base")):
        if tool.find(program) is None:
            wanted = f"apt install {package}"
            found.append(Reason("overlay.program", f"{program} is not installed", OVERLAY, wanted))
    if not (loaded / "vxlan").exists() and not _is_loadable("vxlan", loadable / platform.release()):
        found.append(Reason("overlay.kernel", "the kernel has no VXLAN", OVERLAY, "modprobe vxlan"))
    return found


def check() -> None:
    """:raise Unsupported: with everything that is missing."""
    if reasons := missing():
        raise Unsupported("this node cannot have networks that span nodes", reasons)


def _is_loadable(module: str, lists: Path) -> bool:
    files = [lists / name for name in _LISTS if (lists / name).exists()]
    return any(f"/{module}.ko" in file.read_text() for file in files)
