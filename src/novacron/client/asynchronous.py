"""The asyncio client: does what flows ask for, over httpx2 and the asyncio side of websockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import httpx2

from novacron.client import flow, goals, migrations, snapshots, vms
from novacron.client.async_stage import Stage, exchange
from novacron.client.call import Call, Page, answer_of
from novacron.client.download import Landing, Write, fetch
from novacron.client.endpoint import DEFAULT_SERVER
from novacron.client.everywhere import AsyncEverywhere
from novacron.client.flow import Flow
from novacron.client.goals import Goal
from novacron.client.images import Image, ImageFile, put_file
from novacron.client.images import get as get_image
from novacron.client.line import (
    ANSWER_WITHIN_S,
    http_failures,
    http_options,
    open_line,
)
from novacron.client.listening import Listener, listen
from novacron.client.migrations import Migration
from novacron.client.snapshots import Snapshot
from novacron.client.upload import FILLED_WITHIN_S, OnProgress, Upload, in_parts
from novacron.client.vms import Vm
from novacron.client.waiting import Wait
from novacron.clock import Clock, SystemClock
from novacron.model.event import Event, ObjectType
from novacron.model.image import FileRole
from novacron.wire.stream import Resync, Subscribe

if TYPE_CHECKING:
    from novacron.client.bulk_migrations import BulkMigration
    from novacron.client.rehearsals import Rehearsal
    from novacron.client.volumes import Volume

T = TypeVar("T")


class AsyncClient:
    """A NovaCron server, for asyncio programs: `sync.Client` with `await`. Tasks may share it.

    async with AsyncClient("https://nova.example:8470", token) as nova:
        vm = await nova.do(vms.start("web-1"))
        async for event in nova.events(ids=[vm.id]): ...
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        token: str = "",
        *,
        ca_file: Path | None = None,
        answer_within_s: float = ANSWER_WITHIN_S,
        on_notice: Callable[[str], None] | None = None,
        tries: int = flow.TRIES,
        clock: Clock | None = None,
        consistent: bool = False,
    ) -> None:
        """server: `https://host:port`, `http://` on this machine, `unix:/path`; or those of several servers, separated
        by commas: whichever answers is asked. tries: of calls that may be repeated.
        consistent: every answer is no older than the question (call.consistent).

        :raise InvalidInput: an argument is wrong; it says which.
        """
        self._line = open_line(server, token, ca_file, answer_within_s, on_notice, tries, consistent)
        self._clock = clock or SystemClock()
        self._http = httpx2.AsyncClient(transport=AsyncEverywhere(self._line), **http_options(self._line))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, wrong: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    # -- calls ---------------------------------------------------------------------------------------------

    async def do(self, call: Call[T], *, key: str = "") -> T:
        """Make one call. key: its Idempotency-Key, when the caller keeps one across restarts of its own."""
        return await self._run(flow.perform(call, self._line.means, key))

    def each(self, call: Call[Page[T]]) -> AsyncGenerator[T, None]:
        """Every item of a list, fetched page by page as they are used."""
        return self._given(flow.each(call, self._line.means))

    async def upload(
        self, image: str, role: FileRole, path: Path, on_progress: OnProgress = lambda _sent, _of: None
    ) -> Image:
        """Send a file of an image; the answer is the image, holding it. The file is read in a thread.

        A large one outlives broken connections and a server's restart, and sent again it goes on where it ended. A disk
        that must be converted is waited for.

        :raise InvalidInput: the file cannot be read, is not regular, or changed meanwhile.
        :raise ImageRefused: the server will not have it, or did not get what was sent.
        """
        with Upload(path, role, on_progress) as upload:
            if upload.is_small:
                call = put_file(image, role)
                with http_failures(self._line):
                    response = await exchange(self._http, call.method, call.path, upload.headers, _pieces(upload))
                found = answer_of(call, response)
            else:
                found = await self._run(in_parts(upload, image, role, self._line.means))
            return upload.checked(await self.wait_image_file(found, role))

    async def download(
        self,
        image: str,
        role: FileRole,
        target: Path,
        on_progress: OnProgress = lambda _got, _of: None,
        *,
        overwrite: bool = False,
    ) -> ImageFile:
        """Fetch a file of an image into `target`, which is there only once all of it came and its sha256 is right.

        It outlives broken connections; what is left of one that failed is taken away. Written, and told, in a thread.

        :raise Conflict: `target` is there already and not to be overwritten, or the image's file was replaced.
        :raise InvalidInput: it cannot be written. :raise ImageRefused: not what the record says came.
        """
        with Landing(target, overwrite=overwrite) as landing:
            file = await self.download_to(image, role, landing.write, on_progress)
            await asyncio.to_thread(landing.keep)
            return file

    async def download_to(
        self, image: str, role: FileRole, write: Write, on_progress: OnProgress = lambda _got, _of: None
    ) -> ImageFile:
        """Fetch a file of an image and write its bytes as they come: they are known to be right when this returns.

        :raise ImageRefused: they were not.
        """
        return await self._run(fetch(image, role, write, on_progress, self._line.means))

    async def wait_image_file(
        self,
        image: Image,
        role: FileRole,
        *,
        deadline_s: float = FILLED_WITHIN_S,
        on_update: Callable[[Image], None] = lambda _: None,
    ) -> Image:
        """The image once its file of that role is there. :raise NovaCronError: it failed; the file's own problem."""
        goal = goals.image_file_is_there(role.value)
        if goal.is_met(image):
            return image
        return await self._run(self._wait(deadline_s).until(ObjectType.IMAGE, get_image, image.id, goal, on_update))

    # -- changes -------------------------------------------------------------------------------------------

    def events(
        self,
        *,
        object_types: Sequence[ObjectType] = (),
        ids: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        after: int | None = None,
        until_live: bool = False,
    ) -> AsyncGenerator[Event | Resync, None]:
        """Events that fit all conditions, for ever; through broken lines it goes on where it stopped.

        Its line is closed with it: `async with contextlib.aclosing(nova.events()) as events`.

        after: the `seq` of the last one known; None: only what is new. A Resync means that some are no longer kept.
        until_live: end when everything that had happened before has been given.
        """
        wanted = Subscribe(object_types=tuple(object_types), ids=tuple(ids), labels=dict(labels or {}), after=after)
        return self._given(listen(Listener(wanted, self._line.means, self._clock), until_live=until_live))

    async def wait_vm(
        self,
        ref: str,
        goal: str | Goal[Vm],
        *,
        deadline_s: float = 300.0,
        on_update: Callable[[Vm], None] = lambda _: None,
    ) -> Vm:
        """The VM once it is in that state, or meets the goal. Built on events; nothing is polled.

        :raise DeadlineExceeded: it is not, after `deadline_s`; what was asked for goes on.
        :raise NotFound: there is no such VM (any more).
        :raise NovaCronError: it ended in error; the VM's own problem.
        """
        wanted = goals.vm_is(goal) if isinstance(goal, str) else goal
        return await self._run(self._wait(deadline_s).until(ObjectType.VM, vms.get, ref, wanted, on_update))

    async def wait_vm_gone(
        self, ref: str, *, deadline_s: float = 300.0, on_update: Callable[[Vm], None] = lambda _: None
    ) -> None:
        """Return once the VM is deleted. :raise DeadlineExceeded, NovaCronError: as wait_vm."""
        await self._run(self._wait(deadline_s).until_gone(ObjectType.VM, vms.get, ref, goals.vm_is_gone(), on_update))

    async def wait_migration(
        self,
        migration_id: str,
        *,
        deadline_s: float = 3600.0,
        on_update: Callable[[Migration], None] = lambda _: None,
    ) -> Migration:
        """The migration once it has ended, well or not. :raise DeadlineExceeded, NotFound: as wait_vm."""
        wait, goal = self._wait(deadline_s), goals.migration_is_final()
        return await self._run(wait.until(ObjectType.MIGRATION, migrations.get, migration_id, goal, on_update))

    async def wait_bulk_migration(
        self,
        bulk_id: str,
        *,
        deadline_s: float = 86400.0,
        on_update: Callable[[BulkMigration], None] = lambda _: None,
    ) -> BulkMigration:
        """The whole bulk migration once it has ended, well or not. :raise DeadlineExceeded, NotFound: as wait_vm."""
        from novacron.client import bulk_migrations  # here: most programs move one at a time

        wait, goal = self._wait(deadline_s), goals.bulk_migration_is_final()
        await self._run(wait.until(ObjectType.BULK_MIGRATION, bulk_migrations.get, bulk_id, goal, on_update))
        return await self.do(bulk_migrations.get(bulk_id))

    async def wait_rehearsal(
        self,
        rehearsal_id: str,
        *,
        deadline_s: float = 86400.0,
        on_update: Callable[[Rehearsal], None] = lambda _: None,
    ) -> Rehearsal:
        """The rehearsal once it has ended, well or not. :raise DeadlineExceeded, NotFound: as wait_vm."""
        from novacron.client import rehearsals  # here: most programs rehearse nothing

        wait, goal = self._wait(deadline_s), goals.rehearsal_is_final()
        return await self._run(
            wait.until(ObjectType.MIGRATION_REHEARSAL, rehearsals.get, rehearsal_id, goal, on_update)
        )

    async def wait_snapshot(
        self, snapshot_id: str, *, deadline_s: float = 3600.0, on_update: Callable[[Snapshot], None] = lambda _: None
    ) -> Snapshot:
        """The snapshot once what was asked of it is done. :raise DeadlineExceeded, NotFound, NovaCronError"""
        wait, goal = self._wait(deadline_s), goals.snapshot_settles()
        return await self._run(wait.until(ObjectType.SNAPSHOT, snapshots.get, snapshot_id, goal, on_update))

    async def wait_snapshot_gone(
        self, snapshot_id: str, *, deadline_s: float = 3600.0, on_update: Callable[[Snapshot], None] = lambda _: None
    ) -> None:
        """Return once the snapshot is deleted. :raise DeadlineExceeded, NovaCronError"""
        wait, goal = self._wait(deadline_s), goals.snapshot_settles()
        await self._run(wait.until_gone(ObjectType.SNAPSHOT, snapshots.get, snapshot_id, goal, on_update))

    async def wait_volume(
        self,
        ref: str,
        goal: Goal[Volume],
        *,
        deadline_s: float = 3600.0,
        on_update: Callable[[Volume], None] = lambda _: None,
    ) -> Volume:
        """The volume once it meets the goal. :raise DeadlineExceeded, NotFound, NovaCronError: as wait_vm."""
        from novacron.client import volumes  # here: most programs wait for no volume

        return await self._run(self._wait(deadline_s).until(ObjectType.VOLUME, volumes.get, ref, goal, on_update))

    async def wait_volume_gone(
        self, ref: str, *, deadline_s: float = 300.0, on_update: Callable[[Volume], None] = lambda _: None
    ) -> None:
        """Return once the volume is deleted. :raise DeadlineExceeded, NovaCronError: as wait_vm."""
        from novacron.client import volumes

        goal = goals.volume_is_gone()
        await self._run(self._wait(deadline_s).until_gone(ObjectType.VOLUME, volumes.get, ref, goal, on_update))

    # -- conversations -------------------------------------------------------------------------------------

    def _wait(self, deadline_s: float) -> Wait:
        return Wait(self._line.means, self._clock, deadline_s)

    async def _run(self, conversation: Flow[T]) -> T:
        stage = Stage(self._line, self._http, self._clock)
        async for _ in stage.steps(conversation):
            raise RuntimeError("a flow that gives items was run for its result")
        return cast("T", stage.result)

    def _given(self, conversation: Flow[None]) -> AsyncGenerator[Any, None]:
        return Stage(self._line, self._http, self._clock).steps(conversation)


async def _pieces(upload: Upload) -> AsyncIterator[bytes]:
    while piece := upload.count(await asyncio.to_thread(upload.read)):
        yield piece
