"""A server in miniature for tests of images: production parts on a real store, served in the process or on a port."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import random
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI

from novacron.clock import SystemClock
from novacron.config import ServerConfig
from novacron.control.access.guard import Guard
from novacron.control.access.service import Access
from novacron.control.images.filler import Filler
from novacron.control.images.routes import router
from novacron.control.images.service import ImageService
from novacron.control.images.view import ImageView
from novacron.control.problems import handle_errors
from novacron.control.room import Room
from novacron.control.store.kinds import IMAGES
from novacron.control.store.records import Records
from novacron.control.store.sqlite import SqliteStore
from novacron.model.image import Image

PATH = "/api/v1/images"
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class ImageHouse:
    """An API that serves images alone, the pool they lie in, and the worker that fills them."""

    app: FastAPI
    http: httpx2.AsyncClient
    records: Records
    pool: Path
    service: ImageService
    token: str

    def files(self) -> set[str]:
        """Digests on the shelf."""
        return {path.name for path in (self.pool / "images").iterdir()}

    def left(self) -> list[str]:
        """What lies where files arrive."""
        rooms = (self.pool / "incoming", self.pool / "uploads")
        return sorted(one.name for room in rooms if room.exists() for one in room.iterdir())

    async def tidied(self, within_s: float = 10.0) -> None:
        """Return once nothing lies where files arrive."""
        async with asyncio.timeout(within_s):
            while self.left():
                await asyncio.sleep(0.01)

    async def make(self, name: str = "tiny", **more: Any) -> str:
        answer = await self.http.post(PATH, json={"name": name, **more})
        assert answer.status_code == 201, answer.text
        image_id: str = answer.json()["id"]
        return image_id

    async def put(self, ref: str, role: str, content: Any) -> httpx2.Response:
        headers = {"content-type": "application/octet-stream"}
        return await self.http.put(f"{PATH}/{ref}/files/{role}", content=content, headers=headers)

    async def filled(self, name: str, content: bytes) -> str:
        """A ready image with one disk."""
        image_id = await self.make(name)
        answer = await self.put(image_id, "disk", content)
        assert answer.status_code == 200, answer.text
        assert (await self.http.post(f"{PATH}/{image_id}/seal")).status_code == 200
        return image_id

    def image(self, image_id: str) -> Image:
        return self.records.find(IMAGES, image_id).record

    async def until(self, image_id: str, holds: Callable[[Image], bool], within_s: float = 30.0) -> Image:
        """The image once it holds; told of every change."""
        changed = asyncio.Event()
        stop = self.records.subscribe(lambda _: changed.set())
        try:
            async with asyncio.timeout(within_s):
                while not holds(self.image(image_id)):
                    changed.clear()
                    await changed.wait()
            return self.image(image_id)
        finally:
            stop()


@contextlib.asynccontextmanager
async def image_house(
    directory: Path, pool: Path, *, allow: Sequence[str] = (), ca_file: Path | None = None, filling: bool = True
) -> AsyncIterator[ImageHouse]:
    """The house; with `filling`, its worker works."""
    (pool / "images").mkdir(parents=True, exist_ok=True)
    clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        store = await SqliteStore.open(directory / "store.db", durable=False)
        stack.push_async_callback(store.close)
        records = Records(store, clock, random.Random())
        await records.start()
        stack.push_async_callback(records.stop)
        access = Access(store)
        token = await access.start(directory) or (directory / "admin.token").read_text().strip()
        service = ImageService(records, Room(records, ServerConfig(data_dir=pool, pool_dir=pool)), clock, pool)
        await service.sweep()
        app = FastAPI(openapi_url=None)
        app.state.records, app.state.clock = records, clock
        handle_errors(app)
        app.router.routes.extend(router(records, service, ImageView(records)).routes)
        app.add_middleware(Guard, access=access, open_paths=(), browsable=())
        http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app, raise_app_exceptions=False),
            base_url="http://novacron.test",
            headers={"authorization": f"Bearer {token}"},
        )
        await stack.enter_async_context(http)
        if filling:
            work = asyncio.create_task(Filler(records, service, clock, allow, ca_file).run())
            stack.push_async_callback(_end, work)
        yield ImageHouse(app, http, records, pool, service, token)


async def _end(work: asyncio.Task[None]) -> None:
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


def problem_of(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem an answer carries."""
    assert answer.status_code == status, answer.text
    told: dict[str, Any] = answer.json()
    assert (answer.headers["content-type"], told["code"]) == ("application/problem+json", code)
    return told


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def streamed_vmdk(directory: Path, content: bytes) -> bytes:
    """A streamOptimized VMDK with that content, made by qemu-img."""
    raw, made = directory / "in.raw", directory / "out.vmdk"
    raw.write_bytes(content)
    options = ("-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized")
    subprocess.run(["qemu-img", "convert", *options, raw, made], check=True, capture_output=True)
    return made.read_bytes()
