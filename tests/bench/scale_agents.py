"""A thousand agents in one process: they speak to a real server as agents do, and have no machines behind them.

    python -m tests.bench.scale_agents SERVER_URL < PLAN     (a line of JSON: secret and scale_fleet.Plan)

Each keeps a line, says hello with all its machines, reports every two seconds and heartbeats as Terms say, spread out,
and obeys orders at once. `kill NODE` on standard input ends one as if its host had lost power. On standard output, one
JSON object a line: `up` (when all have joined), `started` (a machine was ordered to start; `at_s`: time.monotonic),
`cpu_s` and `worst_beat_s` on `figures`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from typing import Any

import msgspec
import uvloop
import websockets
from websockets.asyncio.client import ClientConnection

from novacron.errors import Unsupported
from novacron.model.ha import FenceClass
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.membership import Membership
from novacron.model.node import NodeUsage
from novacron.wire import agent as wire
from novacron.wire.membership import Beat, Join, Standing, Terms
from novacron.wire.storage import PoolFound
from tests.bench import scale_fleet as fleet
from tests.bench.scale_fleet import Plan

COMPLETE_EVERY = 15
AT_ONCE = 50
"""So many dial at once: agents that come all at the same moment wait for their turn in the listener's queue."""

_encode = msgspec.json.Encoder().encode
_from_server: msgspec.json.Decoder[wire.FromServer] = msgspec.json.Decoder(wire.FromServer)


class Told:
    """What the bench is told, and what it asks for."""

    def __init__(self) -> None:
        self.worst_beat_s = 0.0
        self.beats = 0
        self.refused = 0

    def say(self, **what: Any) -> None:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()


class Agent:
    """One node. `run` until cancelled or its line breaks."""

    def __init__(self, plan: Plan, number: int, url: str, secret: str, told: Told) -> None:
        self._plan = plan
        self._number = number
        self._url = url
        self._secret = secret
        self._told = told
        self._rng = random.Random(number)
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Standing]] = {}
        running = MachineStatus.RUNNING
        mine = (fleet.vm_id(one) for one in plan.on_node(number))
        self._machines: dict[str, MachineReport] = {one: fleet.report(one, 1, running) for one in mine}
        self._changed: dict[str, None] = {}
        self.joined = asyncio.Event()

    async def run(self, turn: asyncio.Semaphore) -> None:
        async with turn:
            headers = {"Authorization": f"Bearer {self._secret}"}
            socket = await websockets.connect(
                self._url, additional_headers=headers, compression=None, ping_interval=None, open_timeout=60
            )
            await socket.send(_encode(self._hello()))
            welcome = _from_server.decode(await socket.recv(decode=False))
        assert isinstance(welcome, wire.Welcome)
        assert welcome.terms is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hear(socket))
            group.create_task(self._take_part(socket, welcome.terms))
            group.create_task(self._report(socket))

    def _hello(self) -> wire.Hello:
        return wire.Hello(
            protocol=wire.PROTOCOL,
            node_id=fleet.node_id(self._number),
            node_name=f"node-{self._number:05}",
            facts=fleet.facts(self._plan, self._number),
            machines=tuple(self._machines.values()),
            takes_part=True,
        )

    # -- what it says by itself ----------------------------------------------------------------------------

    async def _report(self, socket: ClientConnection) -> None:
        await asyncio.sleep(self._rng.uniform(0, wire.REPORT_INTERVAL_S))
        first = self._rng.randrange(COMPLETE_EVERY)
        for number in itertools.count(1):
            await self._tell(socket, number, complete=(number + first) % COMPLETE_EVERY == 0)
            await asyncio.sleep(wire.REPORT_INTERVAL_S)

    async def _tell(self, socket: ClientConnection, number: int, *, complete: bool) -> None:
        changed = [self._machines[one] for one in self._changed if one in self._machines]
        told = tuple(self._machines.values()) if complete else tuple(changed)
        self._changed.clear()
        usage = NodeUsage(memory_available_mib=1 << 16, machines_running=len(self._machines))
        await socket.send(_encode(wire.Report(seq=number, complete=complete, machines=told, usage=usage)))

    async def _take_part(self, socket: ClientConnection, terms: Terms) -> None:
        heartbeat_s = terms.timing.heartbeat_s
        await asyncio.sleep(self._rng.uniform(0, heartbeat_s))
        member: Membership | None = None
        beats = 0
        while True:
            began_s = time.monotonic()
            if member is None:
                member = await self._join(socket, terms)
                beats = member.beats if member else 0
            else:
                beats += 1
                beat = Beat(id=next(self._ids), epoch=member.epoch, beats=beats, ttl_s=terms.timing.ttl_s)
                answer = await self._ask(socket, beat)
                self._told.beats += 1
                self._told.worst_beat_s = max(self._told.worst_beat_s, time.monotonic() - began_s)
                if not answer.counted:
                    self._told.refused += 1
                    member = None
            await asyncio.sleep(max(0.0, began_s + heartbeat_s - time.monotonic()))

    async def _join(self, socket: ClientConnection, terms: Terms) -> Membership | None:
        seen: Membership | None = None
        for _ in range(3):
            join = Join(
                id=next(self._ids),
                state=seen.state if seen else None,
                epoch=seen.epoch if seen else 0,
                boot_id=f"boot-{self._number}",
                fence_class=FenceClass.TIMER,
                ttl_s=terms.timing.ttl_s,
                servers=terms.servers,
            )
            answer = await self._ask(socket, join)
            seen = answer.member
            if answer.counted:
                self.joined.set()
                return seen
        return None

    async def _ask(self, socket: ClientConnection, question: Beat | Join) -> Standing:
        self._asked[question.id] = asyncio.get_running_loop().create_future()
        await socket.send(_encode(question))
        return await self._asked[question.id]

    # -- what it is told -----------------------------------------------------------------------------------

    async def _hear(self, socket: ClientConnection) -> None:
        while True:
            frame = _from_server.decode(await socket.recv(decode=False))
            if isinstance(frame, Standing):
                self._asked.pop(frame.id).set_result(frame)
            elif isinstance(frame, wire.Call):
                await socket.send(_encode(self._obey(frame)))
                if self._changed:
                    await self._tell(socket, 0, complete=False)

    def _obey(self, call: wire.Call) -> wire.Reply:
        args = msgspec.json.decode(call.args, type=wire.VERBS[call.verb])
        match args:
            case wire.Start():
                self._told.say(started=args.spec.vm_id, node=self._number, at_s=time.monotonic())
                result: Any = self._became(args.spec.vm_id, args.spec.generation, MachineStatus.RUNNING)
            case wire.Stop():
                result = self._became(args.vm_id, args.generation, MachineStatus.STOPPED)
            case wire.Remove():
                self._machines.pop(args.vm_id, None)
                result = None
            case _ if call.verb in ("network.apply", "network.forget"):
                result = None
            case _ if call.verb == "pool.probe":
                result = PoolFound(available=True, free_bytes=1 << 50, size_bytes=1 << 52)
            case _:
                return wire.Reply(id=call.id, error=Unsupported(f"{call.verb} is not simulated").as_data())
        return wire.Reply(id=call.id, result=msgspec.Raw(_encode(result)))

    def _became(self, machine: str, generation: int, status: MachineStatus) -> MachineReport:
        self._machines[machine] = fleet.report(machine, generation, status)
        self._changed[machine] = None
        return self._machines[machine]


async def main(url: str) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    asked = json.loads(await reader.readline())
    secret, plan = asked["secret"], msgspec.convert(asked["plan"], Plan)
    told, turn = Told(), asyncio.Semaphore(AT_ONCE)
    agents = [Agent(plan, number, url, secret, told) for number in range(plan.nodes)]
    running = [asyncio.create_task(agent.run(turn)) for agent in agents]
    joining = asyncio.create_task(_all_joined(agents, told))
    while line := (await reader.readline()).decode().split():
        match line:
            case ["kill", number]:
                running[int(number)].cancel()
            case ["figures"]:
                broken = sum(task.done() and not task.cancelled() for task in running)
                told.say(
                    cpu_s=time.process_time(),
                    beats=told.beats,
                    refused=told.refused,
                    worst_beat_s=told.worst_beat_s,
                    broken=broken,
                )
                told.worst_beat_s = 0.0
    for task in (*running, joining):
        task.cancel()
    await asyncio.gather(*running, joining, return_exceptions=True)


async def _all_joined(agents: list[Agent], told: Told) -> None:
    for agent in agents:
        await agent.joined.wait()
    told.say(up=len(agents), at_s=time.monotonic())


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
