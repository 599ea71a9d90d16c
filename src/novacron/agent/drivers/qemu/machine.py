"""One QEMU as the driver sees it: its process, its two monitors, what it last said, and what is noted on disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Coroutine

from novacron.agent.drivers.base import ProgressListener, ReportListener
from novacron.agent.drivers.qemu import guarding, stall, status
from novacron.agent.drivers.qemu import record as records
from novacron.agent.drivers.qemu.guarding import GuardianLine
from novacron.agent.drivers.qemu.migration import Info
from novacron.agent.drivers.qemu.process import Process
from novacron.agent.drivers.qemu.qmp import Event, Monitor
from novacron.agent.drivers.qemu.record import Ending, Record, Role, Transfer
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.clock import Clock
from novacron.errors import DeadlineExceeded, DriverError, MachineDied, MonitorFailed, Reason
from novacron.model.machine import ENDED, MachineReport, MachineStatus

AGENT_SOCKET = "agent.qmp"
RESCUE_SOCKET = "rescue.qmp"
GUEST_AGENT_SOCKET = "qga.sock"
STDERR_FILE = "stderr.log"
LAST_WORDS_BYTES = 2048
OURS = (AGENT_SOCKET, RESCUE_SOCKET, GUEST_AGENT_SOCKET, STDERR_FILE, "vnc.sock", guarding.SOCKET, records.FILE)

KILL_DEADLINE_S = 10.0
HANG_UP_DEADLINE_S = 0.5  # a QEMU that ends closes its monitors a moment before
REATTACH_PAUSE_S = 0.5
REATTACH_DEADLINE_S = 60.0
QUIT_DEADLINE_S = 2.0
"""A healthy QEMU leaves within milliseconds of `quit`; one that does not is killed."""


class Machine:
    """Its status follows QEMU's events; every change is told to `listener`.

    While a transfer is under way the events alone are believed and nothing is asked, so that no command stands
    between the source's stop and the target's start.
    """

    def __init__(self, record: Record, run_dir: RunDir, clock: Clock, listener: ReportListener) -> None:
        self.record = record
        self.run_dir = run_dir
        self.clock = clock
        self.process: Process | None = None
        self.tpm: Process | None = None  # while this agent is its parent; it ends with QEMU
        self.guardian: GuardianLine | None = None
        self.monitor: Monitor | None = None
        self.rescue: Monitor | None = None
        self.work: asyncio.Task[None] | None = None  # what goes on between verbs: following a transfer that leaves
        self.progress: ProgressListener = lambda _: None
        self.after_attach: Callable[[Machine], None] = lambda _: None
        self.migration_state = "none"
        self.seen_at_s: dict[str, float] = {}  # event name → when it last came
        self.jobs: dict[str, str] = {}  # id of a job of QEMU's → what it last said of it
        self.saving = False  # it writes or reads its memory: QEMU answers nothing, its events alone are believed
        self._listener = listener
        self._status = MachineStatus.PAUSED
        self._reason = ""
        self._since = clock.wall()
        self.refilling = asyncio.Lock()  # held by who brings a target what it lacks
        self.lingers = False  # its guest's end is not yet its own
        self.resume_first = False  # it was sent while it was paused: QEMU sends it again only once it has run
        self.adjusting = False  # so that a device which leaves is awaited
        self.let_go_late = 0
        self.full: tuple[stall.Full, ...] = ()  # volumes without room, for which it stands still
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- what is known ---------------------------------------------------------------------------------------

    @property
    def vm_id(self) -> str:
        return self.record.vm_id

    @property
    def status(self) -> MachineStatus:
        return self._status

    @property
    def reason(self) -> str:
        return self._reason

    @property
    def ended(self) -> bool:
        """Whether no process of it is left."""
        return self._status in ENDED and (self.process is None or not self.process.alive)

    @property
    def leaving(self) -> bool:
        """Whether its state is on the way to another node."""
        return self.work is not None and not self.work.done()

    def report(self) -> MachineReport:
        record = self.record
        return MachineReport(
            vm_id=record.vm_id,
            generation=record.generation,
            status=self._status,
            since=self._since,
            reason=self._reason,
            pid=record.identity.pid if record.identity and self.process and self.process.alive else 0,
            machine_type=record.machine_type,
            cpu_model=record.cpu_model,
            accelerator=record.accelerator,
            endpoints=record.endpoints,
            migration_id=record.transfer.migration_id if record.transfer and not record.transfer.closed else "",
            let_go=self.let_go_late,
            resume_first=self.resume_first and self._status is MachineStatus.PAUSED,
            full_volumes=tuple(one.volume_id for one in self.full),
        )

    def become(self, new: MachineStatus, reason: str = "") -> None:
        """The status from now on. Whoever waits for news looks again; the listener is told if it changed."""
        self.full = self.full if new is MachineStatus.STALLED else ()
        changed = (new, reason) != (self._status, self._reason)
        if changed:
            self._status, self._reason, self._since = new, reason, self.clock.wall()
        self._ring()
        if changed:
            self._listener(self.report())

    def tell(self) -> None:
        """Its report has changed, if not its status."""
        self._listener(self.report())

    def transfer(self, migration_id: str, role: Role) -> Transfer | None:
        """The transfer with that id and role, if it is the one noted."""
        noted = self.record.transfer
        return noted if noted and noted.migration_id == migration_id and noted.role is role else None

    def save(self) -> None:
        """Note the record. :raise DriverError: it cannot be written."""
        try:
            records.save(self.run_dir, self.record)
        except OSError as wrong:
            raise DriverError(f"the record of machine {self.vm_id} cannot be written: {wrong}") from wrong

    def last_words(self) -> str:
        """The end of what QEMU wrote to stderr."""
        with contextlib.suppress(OSError):
            return self.run_dir.words(STDERR_FILE, LAST_WORDS_BYTES)
        return ""

    def oob(self) -> Monitor:
        """The monitor for commands out of band: one that is kept free. Errors as for `door`."""
        return self.rescue if self.rescue is not None and self.rescue.connected else self.door()

    # -- the process and its monitors ------------------------------------------------------------------------

    def hold(self, process: Process) -> None:
        """This is its process. Its end becomes the machine's end."""
        self.process = process
        process.ended.add_done_callback(self._on_end)

    async def attach(self, deadline_s: float, *, starting: bool = False) -> None:
        """Open both monitors. starting: this process made their sockets a moment ago.

        :raise MonitorFailed: a socket is gone, or answered by another process than the machine's.
        :raise DeadlineExceeded: QEMU does not answer. In both cases no monitor is left open.
        """
        monitor = Monitor(self.clock, self._on_event, self._on_lost)
        rescue = Monitor(self.clock, lambda _: None, lambda: None)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(monitor.connect(self._plug(AGENT_SOCKET, starting=starting), deadline_s))
                both.create_task(rescue.connect(self._plug(RESCUE_SOCKET, starting=starting), deadline_s))
        except ExceptionGroup as both_wrong:  # not `except*`: what is raised there comes out wrapped before 3.11.4
            await asyncio.gather(monitor.close(), rescue.close())
            raise both_wrong.exceptions[0] from None
        self.monitor, self.rescue = monitor, rescue

    def _plug(self, name: str, *, starting: bool) -> socket.socket:
        try:
            made = self.run_dir.connect(name)
        except OSError as wrong:
            raise MonitorFailed(f"{name} of machine {self.vm_id} cannot be reached: {wrong}") from wrong
        # The directory is QEMU's: what lies there under the socket's name may lead to another machine's monitor.
        peer = struct.unpack("3i", made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        mine = {self.record.identity.pid} if self.record.identity else set()
        if peer not in mine | ({os.getpid()} if starting else set()):
            made.close()
            raise MonitorFailed(f"{name} of machine {self.vm_id} is answered by process {peer}, which is not its own")
        return made

    def door(self) -> Monitor:
        """The monitor to speak through. :raise MachineDied: the process has ended. :raise DeadlineExceeded: hung."""
        if self.process is None or not self.process.alive:
            raise self.died()
        if self.monitor is None or not self.monitor.connected:
            raise DeadlineExceeded(f"the monitor of machine {self.vm_id} cannot be reached")
        return self.monitor

    def died(self) -> MachineDied:
        """The error for a machine whose process is gone, with what it wrote last."""
        words = self.last_words()
        reasons = [Reason("qemu.last_words", words, subject=self.vm_id)] if words else []
        return MachineDied(f"machine {self.vm_id} has no process: {self._reason or 'it ended'}", reasons)

    async def refresh(self) -> MachineReport:
        """Ask QEMU what it does. A monitor that does not answer makes the status `unknown`, and is no error here."""
        if self.process is None or not self.process.alive:
            return self.report()
        try:
            monitor = self.door()
            answer = await monitor.ask(dict[str, object], "query-status")
            transfer = self.record.transfer
            if transfer is not None:
                before = self.migration_state
                seen = (await monitor.ask(Info, "query-migrate")).status
                # An event that came meanwhile is newer than this answer.
                self.migration_state = seen if self.migration_state == before else self.migration_state
            arriving, sent = self._halves(str(answer["status"]))
            self.resume_first = answer["status"] == status.POSTMIGRATE and not sent
            new, reason = status.meaning(str(answer["status"]), arriving=arriving, sent=sent)
            if answer["status"] == status.IO_ERROR:
                reason, self.full = await stall.failing(monitor)
        except (DeadlineExceeded, MonitorFailed) as wrong:
            hung_up = self.monitor is None or not self.monitor.connected
            ends = hung_up and await self.process.wait(HANG_UP_DEADLINE_S)
            if not ends and self.record.ending is None:
                self.unheard(wrong.message)
            return self.report()
        if new is MachineStatus.STOPPED and self.lingers:
            self.become(MachineStatus.PAUSED, status.SHUT_DOWN)
        elif new is MachineStatus.STOPPED:
            await self.end(Ending(new, reason))
        else:
            self.become(new, reason)
        return self.report()

    def _halves(self, run_state: str) -> tuple[bool, bool]:
        """Whether it arrives and has not been taken over; whether it has left, or stands still so that it can."""
        transfer = self.record.transfer
        if transfer is None:
            return False, False
        if transfer.role is Role.TARGET:
            return not transfer.taken_over, False
        stands = transfer.switching and run_state != "running"
        return False, transfer.opened or stands or self.migration_state == "completed"

    def unheard(self, why: str) -> None:
        """Its monitor does not answer. One that waits for memory from its source cannot, and is none the worse."""
        transfer = self.record.transfer
        if transfer is not None and transfer.taken_over and transfer.in_part and not transfer.closed:
            self.become(MachineStatus.RUNNING, f"it may wait for memory that is still on its way: {why}")
        else:
            self.become(MachineStatus.UNKNOWN, why)

    async def end(self, ending: Ending) -> None:
        """Let QEMU flush and leave; kill it if it does not. The ending is noted first, so that it is no crash.

        :raise DriverError: the process cannot be killed (it hangs in the kernel).
        """
        process = self.process
        if process is None or not process.alive:
            return
        self.record.ending = ending
        self.save()
        with contextlib.suppress(DeadlineExceeded, MonitorFailed, MachineDied):
            await self.door().execute("quit", deadline_s=QUIT_DEADLINE_S)
        if not await process.wait(QUIT_DEADLINE_S):
            await self.kill()
        await self.until(lambda: self.ended, KILL_DEADLINE_S, "end")

    async def kill(self) -> None:
        """SIGKILL, and see it gone. :raise DriverError: it cannot be killed."""
        if self.process is not None and self.process.alive:
            self.process.kill()
            if not await self.process.wait(KILL_DEADLINE_S):
                raise DriverError(f"the process of machine {self.vm_id} does not die: it hangs in the kernel")

    async def until(self, holds: Callable[[], bool], deadline_s: float, what: str) -> None:
        """Wait for it, looking again at every event. :raise DeadlineExceeded: `what` did not come."""
        try:
            async with asyncio.timeout(deadline_s):
                while not holds():
                    await self._news.wait()
        except TimeoutError:
            raise DeadlineExceeded(f"machine {self.vm_id} did not {what} within {deadline_s:g} s") from None

    async def let_go(self) -> None:
        """Hang up and watch no longer. QEMU runs on."""
        for task in (*self._tasks, *((self.work,) if self.work else ())):
            task.cancel()
        await asyncio.gather(*self._tasks, *((self.work,) if self.work else ()), return_exceptions=True)
        for monitor in (self.monitor, self.rescue):
            if monitor is not None:
                await monitor.close()
        if self.guardian is not None:
            self.guardian.close()
            self.guardian = None
        if self.tpm is not None:
            self.tpm.let_go()
        if self.process is not None:
            self.process.ended.remove_done_callback(self._on_end)
            self.process.let_go()

    # -- what it hears ---------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        """QEMU said something. No command is sent from here."""
        self.seen_at_s[event.name] = event.at_s
        if event.name == "DEVICE_DELETED" and "device" in event.data and not self.adjusting:
            self.let_go_late += 1
            self.tell()
        if event.name == "MIGRATION":
            self.migration_state = str(event.data.get("status"))
        elif event.name == "JOB_STATUS_CHANGE":
            self._note_job(str(event.data.get("id")), str(event.data.get("status")))
        if self.leaving or self.saving:
            self._follow(event)
        elif event.name in _ASK_AFTER:
            self.look_later()
        self._ring()

    def _note_job(self, job_id: str, status_: str) -> None:
        self.jobs[job_id] = status_
        if status_ == "null":  # dismissed: nobody asks for it again
            del self.jobs[job_id]

    def _follow(self, event: Event) -> None:
        if event.name == "STOP":
            what = "its last state is being transferred" if self.leaving else "its memory is being saved"
            self.become(MachineStatus.PAUSED, what)
        elif event.name == "RESUME":
            self.become(MachineStatus.RUNNING)

    def look_later(self) -> None:
        """Ask what it does, when the verb at work has ended."""
        self.later(self._look())

    async def _look(self) -> None:
        # What happened may be half of it (a disk error stops the machine an instant later): ask, do not infer.
        if self.process is not None and self.process.alive and not self.leaving and not self.saving:
            await self.refresh()

    def later(self, work: Coroutine[None, None, None]) -> None:
        """Have it done beside the verbs, until the machine is let go."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_lost(self) -> None:
        if self.process is not None and self.process.alive:
            self.reattach_later()
        self._ring()

    def reattach_later(self) -> None:
        """Open the monitors as soon as QEMU answers; until then it is as `unheard` says."""
        self.later(self._reattach())

    async def _reattach(self) -> None:
        while self.process is not None and not await self.process.wait(REATTACH_PAUSE_S):
            for monitor in (self.monitor, self.rescue):
                if monitor is not None:
                    await monitor.close()
            try:
                await self.attach(REATTACH_DEADLINE_S)
            except (MonitorFailed, DeadlineExceeded) as wrong:
                self.unheard(wrong.message)
                continue
            await self.refresh()
            self.after_attach(self)
            return

    def _on_end(self, ended: asyncio.Future[str]) -> None:
        if ended.cancelled():
            return
        ending = self.record.ending
        if ending is not None:
            self.become(ending.status, ending.reason)
        else:
            words = self.last_words()
            self.become(MachineStatus.CRASHED, f"{ended.result()}; {words}" if words else ended.result())

    def _ring(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


_ASK_AFTER = frozenset(
    {"STOP", "RESUME", "SHUTDOWN", "SUSPEND", "WAKEUP", "BLOCK_IO_ERROR", "GUEST_PANICKED", "POWERDOWN"}
)
