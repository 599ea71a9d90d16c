"""One end of the stream proxy in a process of its own, for the WAN bench: orders and answers are lines of JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from novacron.agent.stream.cache import PageCache
from novacron.agent.stream.figures import Figures, Settings
from novacron.agent.stream.receiver import Receiver
from novacron.agent.stream.sender import Sender


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def told(figures: Figures) -> dict[str, Any]:
    return {**msgspec.to_builtins(figures), "ratio": figures.ratio}


async def receive(directory: Path, limit_bytes: int, images: list[Path], settings: Settings) -> None:
    """Streams one after the other into one cache."""
    cache = PageCache(directory, limit_bytes)
    scope = cache.scope("bench")
    for image in images:
        await asyncio.to_thread(scope.learn, image)
    say(ready=True)
    while order := json.loads(await asyncio.to_thread(sys.stdin.readline) or "null"):
        async with Receiver(
            secret=bytes.fromhex(order["secret"]), host=order["host"], qemu_path=Path(order["qemu"]), scope=scope,
            settings=settings,
        ) as receiver:  # fmt: skip
            say(address=await receiver.start())
            say(figures=told(await receiver.wait()))
    cache.close()


async def send(settings: Settings) -> None:
    """Streams one after the other; what the link carried is known to the next."""
    link: float | None = None
    say(ready=True)
    while order := json.loads(await asyncio.to_thread(sys.stdin.readline) or "null"):
        async with Sender(
            secret=bytes.fromhex(order["secret"]), target=tuple(order["target"]), socket_path=Path(order["path"]),
            settings=settings, link_bytes_per_s=link,
        ) as sender:  # fmt: skip
            say(address=await sender.start())
            figures = await sender.wait()
            link = figures.link_bytes_per_s or link
            say(figures=told(figures))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.wan_end")
    parser.add_argument("side", choices=("send", "receive"))
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--limit-bytes", type=int, default=4 << 30)
    parser.add_argument("--channels", type=int, default=Settings().channels)
    parser.add_argument("--image", type=Path, action="append", default=[])
    asked = parser.parse_args()
    settings = Settings(channels=asked.channels)
    work = send(settings) if asked.side == "send" else receive(asked.dir, asked.limit_bytes, asked.image, settings)
    uvloop.run(work)


if __name__ == "__main__":
    main()
