"""What is said over a running lab's control socket: one order and one answer a connection, each a line of JSON."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec

from novacron.lab.failure import LabFailed
from novacron.lab.links import LinkState

ANSWER_S = 60.0
LOOK_S = 5.0
LEAVE_S = 300.0  # every machine is ended as a user would
MAX_BYTES = 1 << 20
SERVER = "server"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What lab is wanted. privileged: as root, each node a host of its own. link: what each node's is like at first."""

    nodes: int = 2
    privileged: bool = True
    link: LinkState = LinkState()


class Look(msgspec.Struct, frozen=True, tag="look"):
    """Change nothing."""


class Bend(msgspec.Struct, frozen=True, kw_only=True, tag="bend"):
    """Change what is given of a node's link. rate_bit_per_s 0: as fast as it goes."""

    node: str
    latency_ms: float | None = None
    jitter_ms: float | None = None
    loss: float | None = None
    rate_bit_per_s: int | None = None
    cut: bool | None = None
    unplugged: bool | None = None

    def applied(self, state: LinkState) -> LinkState:
        """The link as it is to be."""
        given = {name: value for name in LinkState.__struct_fields__ if (value := getattr(self, name)) is not None}
        if self.rate_bit_per_s == 0:
            given["rate_bit_per_s"] = None
        return msgspec.structs.replace(state, **given)


class Part(msgspec.Struct, frozen=True, kw_only=True, tag="part"):
    """Whether two nodes hear each other."""

    one: str
    other: str
    cut: bool


class Strike(msgspec.Struct, frozen=True, kw_only=True, tag="strike"):
    """Take the power of a node, or kill the server (name `server`), or with agent_only a node's agent."""

    name: str
    agent_only: bool = False


class Restart(msgspec.Struct, frozen=True, kw_only=True, tag="restart"):
    """The same, and then start it again; what is dead already is just started."""

    name: str
    agent_only: bool = False


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """Put the lab away. The connection ends when that is done."""


Order = Look | Bend | Part | Strike | Restart | Leave
_DEADLINES_S: dict[type, float] = {Look: LOOK_S, Leave: LEAVE_S}


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """pid: of the node's first process, as this machine counts; None: it has no power, or no place of its own."""

    name: str
    address: str
    power: bool
    agent: bool
    link: LinkState
    pid: int | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A lab that runs. fabric: a path that names the network namespace where its clients are; empty: there is none."""

    path: str
    server: str
    token_file: str
    privileged: bool
    serving: bool
    fabric: str
    nodes: tuple[NodeStatus, ...]
    parted: tuple[tuple[str, str], ...] = ()


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """An order that was not followed."""

    message: str
    remedy: str = ""


class Followed(msgspec.Struct, frozen=True, kw_only=True, tag="followed"):
    """The lab as it is after the order."""

    status: Status


def control_socket(lab: Path) -> Path:
    """Where a running lab takes orders; its owner alone may."""
    return lab / "control.sock"


def is_up(lab: Path) -> bool:
    """Whether somebody takes orders there."""
    with socket.socket(socket.AF_UNIX) as door:
        try:
            door.connect(str(control_socket(lab)))
        except OSError:
            return False
    return True


def ask(lab: Path, order: Order) -> Status:
    """Have an order followed. :raise LabFailed: no lab runs there, or it refused."""
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(_DEADLINES_S.get(type(order), ANSWER_S))
        try:
            door.connect(str(control_socket(lab)))
            door.sendall(msgspec.json.encode(order) + b"\n")
            with door.makefile("rb") as answers:
                answer = answers.readline(MAX_BYTES)
                if answer and isinstance(order, Leave):
                    answers.read(1)  # until its end
        except OSError as wrong:
            raise LabFailed.because(f"no lab answers in {lab}: {wrong}", "novacron lab list") from wrong
    if not answer:
        raise LabFailed.because(f"the lab in {lab} ended before it answered", "novacron lab down")
    said = msgspec.json.decode(answer, type=Followed | Refused)
    if isinstance(said, Refused):
        raise LabFailed.because(said.message, said.remedy)
    return said.status
