"""The command line, run in this process against a small server that speaks the wire's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from starlette.types import Receive, Scope, Send

from novacron.cli import amounts
from novacron.cli.main import novacron
from novacron.client import flow
from tests.client.control_room import ControlRoom, at
from tests.client.served import served

Run = Callable[..., Result]


class _Switchboard:
    def __init__(self) -> None:
        self.room = ControlRoom()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.room.app(scope, receive, send)


@pytest.fixture(scope="session")
def switchboard() -> Iterator[tuple[_Switchboard, str]]:
    board = _Switchboard()
    with served(board) as where:
        yield board, where


@pytest.fixture
def room(switchboard: tuple[_Switchboard, str]) -> ControlRoom:
    switchboard[0].room = ControlRoom()
    return switchboard[0].room


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is 12:05 on the day of the records; rests are short."""
    import datetime

    monkeypatch.setattr(amounts, "now", lambda: datetime.datetime.fromisoformat(at(300)))
    monkeypatch.setattr(flow, "FIRST_REST_S", 0.01)


@pytest.fixture
def environment(switchboard: tuple[_Switchboard, str], tmp_path: Path) -> dict[str, str]:
    """What the commands see: this server, this token, a home of their own."""
    return {
        "NOVACRON_SERVER": switchboard[1],
        "NOVACRON_TOKEN": "secret",
        "NOVACRON_TOKEN_FILE": "",
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": "",
    }


@pytest.fixture
def run(room: ControlRoom, environment: dict[str, str]) -> Run:
    """Runs one command line: `run("vm list -o json")`, or with words that hold spaces as a list."""

    def runner(line: str | list[str], **more: object) -> Result:
        words = line.split() if isinstance(line, str) else line
        return CliRunner(env=environment).invoke(novacron, words, catch_exceptions=False, prog_name="novacron", **more)  # type: ignore[arg-type]

    return runner
