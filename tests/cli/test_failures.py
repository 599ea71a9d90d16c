"""How commands fail: exit codes, words on stderr, nothing on stdout."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from novacron.cli.failures import exit_code
from novacron.errors import (
    BY_CODE,
    Busy,
    DeadlineExceeded,
    DriverError,
    Forbidden,
    InvalidInput,
    NoRoom,
    NotFound,
    NovaCronError,
    PreconditionFailed,
    Reason,
    StateConflict,
    Unauthenticated,
    Unavailable,
)
from tests.cli.conftest import Run
from tests.client.control_room import ControlRoom, refused, said, vm


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DriverError("QEMU failed"), 1),
        (NotFound("no VM web-1"), 3),
        (StateConflict("it is stopped"), 4),
        (Busy("another task"), 4),
        (PreconditionFailed("older"), 4),
        (NoRoom("no node can take it"), 5),
        (InvalidInput.field("vcpus", "must be at least 1"), 5),
        (Unauthenticated("a token is needed"), 5),
        (Forbidden("lacks vms.start"), 5),
        (Unavailable("no leader"), 6),
        (DeadlineExceeded("too slow"), 7),
    ],
)
def test_exit_codes(room: ControlRoom, run: Run, error: NovaCronError, code: int) -> None:
    room.on("POST", "/vms/web-1/start", refused(error))
    result = run("vm start web-1")
    assert result.exit_code == code
    assert result.stdout == ""
    assert f"error: {error.message}\n" in result.stderr


def test_every_error_of_the_tree_has_a_documented_exit_code() -> None:
    assert {exit_code(kind("x")) for kind in BY_CODE.values()} <= {1, 3, 4, 5, 6, 7}


def test_each_reason_stands_on_its_line_with_what_to_do(room: ControlRoom, run: Run) -> None:
    reasons = [
        Reason("memory.short", "4 GiB asked, 1 GiB free", subject="node-1", remedy="choose a smaller size"),
        Reason("node.cordoned", "takes no new VM", subject="node-2", remedy="novacron node uncordon node-2"),
        Reason("memory.short", "4 GiB asked, 2 GiB free", subject="node-3", remedy="choose a smaller size"),
    ]
    room.on("POST", "/vms", refused(NoRoom("no node can take web-1", reasons)))
    assert run("vm create web-1 --image debian-12").stderr == (
        "error: no node can take web-1\n"
        "  - node-1: 4 GiB asked, 1 GiB free\n"
        "  - node-2: takes no new VM\n"
        "  - node-3: 4 GiB asked, 2 GiB free\n"
        "  try: choose a smaller size\n"
        "  try: novacron node uncordon node-2\n"
    )


def test_an_error_cannot_act_on_the_terminal(room: ControlRoom, run: Run) -> None:
    reasons = [Reason("a", "\x1b[2Jgone", subject="\u202e", remedy="\x07")]
    room.on("POST", "/vms/web-1/start", refused(StateConflict("\x1b]0;owned\x07", reasons)))
    assert run("vm start web-1").stderr.replace("\n", "").isprintable()


def test_without_a_token_it_is_said_how_to_give_one(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms", refused(Unauthenticated("a token is needed")))
    assert "try: give --token-file FILE, NOVACRON_TOKEN_FILE or NOVACRON_TOKEN\n" in run("vm list").stderr


def test_unreachable_says_what_to_look_at(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    result = run(f"vm list --server {address}")
    assert result.exit_code == 6
    assert f"error: cannot reach the server at {address}" in result.stderr
    assert "try: see that it runs (`novacron server run`)" in result.stderr
    assert result.stderr.count("note: ") == 3


@pytest.mark.parametrize(
    "line",
    [
        "vm",
        "vm list --state happy",
        "vm create web-1",
        "vm create web-1 --image i --memory 2Q",
        "vm create web-1 --image i --memory 1000",
        "vm create web-1 --image i --nic wifi",
        "vm create web-1 --image i --nic user --no-nic",
        "vm create web-1 --image i --cloud-init /nonexistent",
        "vm update web-1",
        "vm stop web-1 --deadline soon",
        "vm migrate web-1 --bandwidth fast",
        "node label node-1 nonsense",
        "image create i",
        "image create i --disk d --initrd x",
        "events --after -1",
        "nonsense",
    ],
)
def test_wrong_usage(room: ControlRoom, run: Run, line: str) -> None:
    result = run(line)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert room.asked == []


@pytest.mark.parametrize("name", ["..", "a/b", "A", "x" * 64])
def test_a_wrong_name_is_refused_before_it_is_sent(room: ControlRoom, run: Run, name: str) -> None:
    result = run(["vm", "delete", "--yes", name])
    assert result.exit_code == 5
    assert room.asked == []


def test_an_interrupt_is_130_and_says_that_the_work_goes_on(
    room: ControlRoom, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from novacron.client.sync import Client

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "wait_vm", interrupted)
    room.on("POST", "/vms/web-1/start", said(vm(state="starting")))
    result = run("vm start web-1 --wait")
    assert result.exit_code == 130
    assert result.stderr == "only the waiting ends; what was asked for goes on\ninterrupted\n"


# -- which server, which token -----------------------------------------------------------------------------


def token_of(room: ControlRoom) -> str | None:
    return room.asked[-1].headers.get("authorization")


@pytest.fixture
def tokens(room: ControlRoom, tmp_path: Path) -> Path:
    room.on("GET", "/vms", said({"items": [], "next_cursor": None}))
    for name in ("flag", "environment", "context"):
        (tmp_path / name).write_text(f"{name}-token\n")
        (tmp_path / name).chmod(0o600)
    return tmp_path


def test_the_token_file_of_the_flag_counts_most(
    room: ControlRoom, run: Run, tokens: Path, environment: dict[str, str]
) -> None:
    environment["NOVACRON_TOKEN_FILE"] = str(tokens / "environment")
    run(f"vm list --token-file {tokens / 'flag'}")
    assert token_of(room) == "Bearer flag-token"
    run(f"--token-file {tokens / 'flag'} vm list")
    assert token_of(room) == "Bearer flag-token"
    run("vm list")
    assert token_of(room) == "Bearer secret"
    environment["NOVACRON_TOKEN"] = ""
    run("vm list")
    assert token_of(room) == "Bearer environment-token"


def test_a_token_that_others_may_read_is_warned_of(run: Run, tokens: Path) -> None:
    (tokens / "flag").chmod(0o644)
    result = run(f"vm list --token-file {tokens / 'flag'}")
    assert result.exit_code == 0
    assert f"warning: others may read the token in {tokens / 'flag'}" in result.stderr
    assert "flag-token" not in result.output


def test_a_token_that_cannot_be_read(run: Run, tokens: Path) -> None:
    result = run(f"vm list --token-file {tokens / 'nothing'}")
    assert result.exit_code == 5
    assert f"cannot read {tokens / 'nothing'}" in result.stderr


def test_contexts(room: ControlRoom, run: Run, tokens: Path, environment: dict[str, str]) -> None:
    address = environment.pop("NOVACRON_SERVER")
    environment |= {"NOVACRON_SERVER": "", "NOVACRON_TOKEN": ""}
    assert run(f"context set lab --server {address} --token-file {tokens / 'context'}").exit_code == 0
    assert run("context set far --server https://nova.example:8470").exit_code == 0
    assert run("context list").stdout.splitlines()[1].split() == ["*", "lab", address, str(tokens / "context"), "-"]
    run("vm list")
    assert token_of(room) == "Bearer context-token"

    assert run("context use far").exit_code == 0
    environment |= {"NOVACRON_TOKEN": "of-another-server", "NOVACRON_SERVER": "http://127.0.0.1:1"}
    assert run("vm list --context lab").exit_code == 0
    assert token_of(room) == "Bearer context-token"
    assert run("context use nowhere").exit_code == 3
    assert run("context remove far").exit_code == 0
    assert (tokens / ".config/novacron/client.toml").stat().st_mode & 0o077 == 0


def test_the_token_of_a_context_goes_to_no_other_server(
    room: ControlRoom, run: Run, tokens: Path, environment: dict[str, str]
) -> None:
    address = environment["NOVACRON_SERVER"]
    environment["NOVACRON_TOKEN"] = ""
    run(f"context set far --server https://nova.example:8470 --token-file {tokens / 'context'}")
    run(f"vm list --server {address}")
    assert token_of(room) is None


@pytest.mark.parametrize(
    "server", ["http://nova.example:8470", "ftp://x", "nova.example", "unix:relative", "http://a@[::1]"]
)
def test_an_address_that_is_none(run: Run, server: str) -> None:
    result = run(["vm", "list", "--server", server])
    assert result.exit_code == 5
    assert result.stderr.startswith("error: server: ")


@pytest.mark.parametrize("text", ["current = 5", "[contexts.a]", "nonsense", "colour = 'red'", "[contexts]\na=1"])
def test_a_broken_configuration_is_named(run: Run, tmp_path: Path, text: str) -> None:
    file = tmp_path / ".config/novacron/client.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    result = run("vm list")
    assert result.exit_code == 5
    assert str(file) in result.stderr


@pytest.mark.parametrize("name", ["a.b", "a]", "", "x\ny", "-a", "x" * 64])
def test_a_context_name_cannot_break_the_file(run: Run, name: str) -> None:
    assert run(["context", "set", "--server", "https://a:1", "--", name]).exit_code == 5
