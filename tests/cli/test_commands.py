"""Commands that do something: what they send, wait for, show and leave behind."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from novacron.cli import console as console_module
from novacron.errors import ImageRefused, NotFound, PreconditionFailed
from tests.cli.conftest import Run
from tests.client.control_room import (
    COMPLETED,
    IMAGE_ID,
    MIGRATION_ID,
    NOW,
    VM_ID,
    ControlRoom,
    image,
    migration,
    node,
    refused,
    said,
    vm,
)

TASK = {"id": "01940000-0000-7000-8000-00000000000a", "kind": "start", "requested_at": NOW}


def later(room: ControlRoom, *changes: tuple[str, dict[str, Any]]) -> None:
    """Let these things happen once somebody listens."""

    def happen() -> None:
        waited = threading.Event()
        while not room.subscribed:
            waited.wait(0.01)
        for type_, data in changes:
            room.happen(type_, data)

    threading.Thread(target=happen, daemon=True).start()


def test_create_sends_what_was_said(room: ControlRoom, run: Run, tmp_path: Path) -> None:
    room.on("POST", "/vms", said(vm(state="creating", task=TASK), 202))
    (tmp_path / "user-data.yaml").write_text("#cloud-config\n")
    line = (
        "vm create web-1 --image debian-12 --vcpus 2 --memory 2G --root-disk 20GiB --disk 1G --disk 512MiB "
        "--nic user,forward=22,forward=8080:80 --nic bridge=br0,mac=52:54:00:AA:BB:CC --label a=b --label c= "
        f"--cloud-init {tmp_path}/user-data.yaml --node n --machine q35 --firmware uefi --guest-agent --stopped"
    )
    assert run([*line.split(), "--description", "for me"]).stdout == "web-1: creating on node-1\n"
    assert json.loads(room.bodies[0]) == {
        "name": "web-1",
        "image": "debian-12",
        "description": "for me",
        "labels": {"a": "b", "c": ""},
        "vcpus": 2,
        "memory_mib": 2048,
        "machine": "q35",
        "firmware": "uefi",
        "root_disk_bytes": 20 << 30,
        "disks": [{"size_bytes": 1 << 30}, {"size_bytes": 512 << 20}],
        "nics": [
            {"forwards": [{"guest_port": 22}, {"guest_port": 80, "host_port": 8080}]},
            {"network": "bridge", "bridge": "br0", "mac": "52:54:00:aa:bb:cc"},
        ],
        "cloud_init": {"user_data": "#cloud-config\n"},
        "guest_agent": True,
        "node": "n",
        "desired": "stopped",
    }


def test_create_sends_nothing_that_was_not_said(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms", said(vm(), 202))
    run("vm create web-1 --image debian-12")
    run("vm create web-1 --image debian-12 --no-nic")
    assert [json.loads(body) for body in room.bodies] == [
        {"name": "web-1", "image": "debian-12"},
        {"name": "web-1", "image": "debian-12", "nics": []},
    ]


def test_cloud_init_from_stdin(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms", said(vm(), 202))
    run("vm create web-1 --image debian-12 --cloud-init -", input="#cloud-config\n")
    assert json.loads(room.bodies[0])["cloud_init"] == {"user_data": "#cloud-config\n"}


def test_create_and_wait(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms", said(vm(state="creating", task=TASK), 202))
    room.on("GET", f"/vms/{VM_ID}", said(vm(state="creating", task=TASK)))
    later(room, ("vm.updated", vm(state="starting", task=TASK, revision=11)), ("vm.updated", vm(revision=12)))
    result = run("vm create web-1 --image debian-12 --wait")
    assert result.stdout == "web-1: running on node-1\n"
    assert result.stderr == "web-1: creating on node-1\nweb-1: starting on node-1\nweb-1: running on node-1\n"


def test_waiting_with_json_keeps_stdout_clean(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms/web-1/start", said(vm(), 202))
    room.on("GET", f"/vms/{VM_ID}", said(vm()))
    assert json.loads(run("vm start web-1 --wait -o json").stdout) == vm()


def test_waiting_too_long_is_seven(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms/web-1/start", said(vm(state="starting", task=TASK), 202))
    room.on("GET", f"/vms/{VM_ID}", said(vm(state="starting", task=TASK)))
    result = run("vm start web-1 --wait --timeout 200ms")
    assert result.exit_code == 7
    assert "is not running after 0.2 s; it is starting" in result.stderr
    assert "try: look at it again, or wait longer (--timeout)" in result.stderr


@pytest.mark.parametrize(
    ("line", "path", "body"),
    [
        ("vm start web-1", "start", None),
        ("vm stop web-1", "stop", {}),
        ("vm stop web-1 --force", "stop", {"force": True}),
        ("vm stop web-1 --deadline 30s", "stop", {"deadline_s": 30.0}),
        ("vm restart web-1 --deadline 1m", "restart", {"deadline_s": 60.0}),
        ("vm pause web-1", "pause", None),
        ("vm resume web-1", "resume", None),
    ],
)
def test_verbs(room: ControlRoom, run: Run, line: str, path: str, body: dict[str, Any] | None) -> None:
    room.on("POST", f"/vms/web-1/{path}", said(vm(state="stopping"), 202))
    assert run(line).stdout == "web-1: stopping on node-1\n"
    assert (json.loads(room.bodies[0]) if room.bodies[0] else None) == body


def test_update_merges_labels_and_tries_again_when_somebody_was_quicker(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms/web-1", said(vm(labels={"a": "1"}, revision=10)), said(vm(labels={"b": "2"}, revision=11)))
    room.on("PATCH", "/vms/web-1", refused(PreconditionFailed("older")), said(vm()))
    assert run("vm update web-1 --label c=3 --remove-label a --memory 1G").stdout == "web-1: changed\n"
    patches = [
        (request.headers["if-match"], json.loads(body))
        for request, body in zip(room.asked, room.bodies, strict=True)
        if request.method == "PATCH"
    ]
    assert patches == [
        ('"10"', {"labels": {"c": "3"}, "memory_mib": 1024}),
        ('"11"', {"labels": {"b": "2", "c": "3"}, "memory_mib": 1024}),
    ]


def test_delete(room: ControlRoom, run: Run) -> None:
    room.on("DELETE", "/vms/web-1", said(vm(state="deleting", desired="deleted"), 202))
    room.on("GET", f"/vms/{VM_ID}", refused(NotFound("gone")))
    assert run("vm delete web-1").stdout == "web-1: is being deleted\n"
    assert run("vm delete web-1 --force --wait").stdout == "web-1: deleted\n"
    assert [request.url.query for request in room.asked] == ["", "force=true", ""]


@pytest.mark.parametrize("line", ["vm delete web-1", "node delete node-1", "image delete debian-12"])
def test_on_a_terminal_deleting_asks(room: ControlRoom, run: Run, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    import novacron.cli.options as options

    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

    monkeypatch.setattr(options, "sys", type("sys", (), {"stdin": Terminal, "stderr": Terminal}))
    for path in ("/vms/web-1", "/nodes/node-1", "/images/debian-12"):
        room.on("DELETE", path, said(vm()))
    denied = run(line, input="n\n")
    assert denied.exit_code == 130
    assert room.asked == []
    assert run(line, input="y\n").exit_code == 0
    assert run(f"{line} --yes").exit_code == 0
    assert len(room.asked) == 2


# -- migrations --------------------------------------------------------------------------------------------


def test_migrate_sends_goals(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/migrations", said(migration(), 202))
    result = run("vm migrate web-1 --to node-2 --max-downtime-ms 50 --bandwidth 100MiB/s --finish-within 10m")
    assert result.stdout == (f"web-1: moving from node-1 to node-2; novacron migration watch {MIGRATION_ID}\n")
    assert json.loads(room.bodies[0]) == {
        "vm": "web-1",
        "target_node": "node-2",
        "max_downtime_ms": 50,
        "bandwidth_bytes_per_s": 100 << 20,
        "finish_within_s": 600.0,
    }


def test_migrate_and_wait_ends_with_what_it_cost(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/migrations", said(migration(), 202))
    room.on("GET", f"/migrations/{MIGRATION_ID}", said(migration()))
    later(room, ("migration.updated", migration(**COMPLETED, revision=41)))
    result = run("vm migrate web-1 --wait")
    assert result.exit_code == 0
    assert result.stdout == (
        "web-1: moved from node-1 to node-2; total 7.0 s, 540 MiB sent, 3 rounds, downtime 12 ms by QEMU's count, "
        "18.4 ms from stop to resume\n"
    )
    assert result.stderr.splitlines()[0] == (
        "web-1: node-1 -> node-2 transferring 128 MiB sent, 384 MiB left, 64 MiB/s, round 1, about 6.0 s to go"
    )


@pytest.mark.parametrize("state", ["rolled_back", "cancelled", "failed"])
def test_a_migration_that_does_not_arrive_fails(room: ControlRoom, run: Run, state: str) -> None:
    problem = {"code": "no_room", "message": "node-2 ran out of memory", "at": NOW, "remedy": "free some"}
    room.on("GET", f"/migrations/{MIGRATION_ID}", said(migration(state=state, problem=problem)))
    result = run(f"migration watch {MIGRATION_ID}")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"ended {state}: node-2 ran out of memory" in result.stderr
    assert ("where it is must be looked at" in result.stderr) == (state == "failed")
    assert "try: free some" in result.stderr
    as_json = run(f"migration watch {MIGRATION_ID} -o json")
    assert json.loads(as_json.stdout)["state"] == state
    assert as_json.exit_code == 1


def test_cancel(room: ControlRoom, run: Run) -> None:
    room.on("POST", f"/migrations/{MIGRATION_ID}/set-bandwidth", said(migration(state="transferring"), 202))
    paced = run(f"migration set-bandwidth {MIGRATION_ID} 10MiB/s").stdout
    assert paced == f"{MIGRATION_ID}: transferring; at most 10 MiB/s from now on\n"
    assert json.loads(room.bodies[-1]) == {"bandwidth_bytes_per_s": 10 << 20}
    room.on("POST", f"/migrations/{MIGRATION_ID}/cancel", said(migration(state="cancelling"), 202))
    assert run(f"migration cancel {MIGRATION_ID}").stdout == f"{MIGRATION_ID}: cancelling; web-1 stays on node-1\n"
    room.on("POST", f"/migrations/{MIGRATION_ID}/discard-copies", said(migration(state="completed")))
    discarded = run(f"migration discard-copies {MIGRATION_ID}").stdout
    assert discarded == f"{MIGRATION_ID}: its copies of disks on node-1 are deleted\n"


# -- images ------------------------------------------------------------------------------------------------


def keep_files(room: ControlRoom) -> None:
    async def keep(request: Request) -> Response:
        role = request.url.path.rsplit("/", 1)[1]
        body = await request.body()
        file = {"role": role, "digest": hashlib.sha256(body).hexdigest(), "size_bytes": len(body)}
        return said(image(state="pending", files=[file]))

    room.on("POST", "/images", said(image(state="pending", files=[]), 201))
    for role in ("disk", "kernel", "initrd", "firmware"):
        room.on("PUT", f"/images/{IMAGE_ID}/files/{role}", keep)


def test_an_image_is_made_filled_and_sealed(room: ControlRoom, run: Run, tmp_path: Path) -> None:
    keep_files(room)
    room.on("POST", f"/images/{IMAGE_ID}/seal", said(image()))
    for name in ("vmlinuz", "initrd.gz"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    result = run(
        f"image create tiny --kernel {tmp_path}/vmlinuz --initrd {tmp_path}/initrd.gz --cmdline console=ttyS0 "
        "--label a=b"
    )
    assert result.stdout == "debian-12: ready, 300 MiB\n"
    assert [(request.method, request.url.path.removeprefix("/api/v1")) for request in room.asked] == [
        ("POST", "/images"),
        ("PUT", f"/images/{IMAGE_ID}/files/kernel"),
        ("PUT", f"/images/{IMAGE_ID}/files/initrd"),
        ("POST", f"/images/{IMAGE_ID}/seal"),
    ]
    assert json.loads(room.bodies[0]) == {"name": "tiny", "cmdline": "console=ttyS0", "labels": {"a": "b"}}
    assert room.bodies[1] == b"vmlinuz" * 1000
    assert "debian-12: sending kernel 6.8 KiB of 6.8 KiB\n" in result.stderr


def test_an_image_that_is_refused_is_taken_back(room: ControlRoom, run: Run, tmp_path: Path) -> None:
    keep_files(room)
    room.on("PUT", f"/images/{IMAGE_ID}/files/disk", refused(ImageRefused("its header points at /etc/passwd")))
    room.on("DELETE", f"/images/{IMAGE_ID}", Response(status_code=204))
    (tmp_path / "disk").write_bytes(b"evil")
    result = run(f"image create tiny --disk {tmp_path}/disk")
    assert result.exit_code == 5
    assert "its header points at /etc/passwd" in result.stderr
    assert room.asked[-1].method == "DELETE"


def test_when_it_cannot_be_taken_back_that_is_said(room: ControlRoom, run: Run, tmp_path: Path) -> None:
    keep_files(room)
    room.on("PUT", f"/images/{IMAGE_ID}/files/disk", refused(ImageRefused("corrupt")))
    room.on("DELETE", f"/images/{IMAGE_ID}", refused(PreconditionFailed("older")))
    (tmp_path / "disk").write_bytes(b"evil")
    result = run(f"image create tiny --disk {tmp_path}/disk")
    assert result.exit_code == 5
    assert "note: the unfinished image could not be removed: older; image delete debian-12\n" in result.stderr


# -- console -----------------------------------------------------------------------------------------------


def test_console_shows_text_and_nothing_else(room: ControlRoom, run: Run) -> None:
    log = "\x1b[32m[  OK  ]\x1b[0m Started\r\n\x1b]0;owned\x07login: \x1b[2J\x00\x9b31m\u202e\n"
    room.on("GET", "/vms/web-1/console-log", said({"vm_id": VM_ID, "text": log, "truncated": False}))
    assert run("vm console web-1").stdout == "[  OK  ] Started\nlogin: \\x00\\x9b31m\\u202e\n"
    assert run("vm console web-1 --raw").stdout_bytes == log.encode()
    assert room.asked[0].url.query == "max_bytes=65536"


def test_console_followed(room: ControlRoom, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "LOOK_EVERY_S", 0.001)
    texts = ["one\n", "one\ntwo\n", "two\nthree\n", "two\nthree\n", "far away\n"]
    answers = [said({"vm_id": VM_ID, "text": text, "truncated": True}) for text in texts]
    room.on("GET", "/vms/web-1/console-log", answers[0])
    room.on("GET", f"/vms/{VM_ID}/console-log", *answers[1:], refused(NotFound("no VM web-1")))
    result = run("vm console web-1 --follow")
    assert result.stdout == "one\ntwo\nthree\nfar away\n"
    assert "some is missing here" in result.stderr
    assert result.exit_code == 3


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ("", "", ""),
        ("", "abc", "abc"),
        ("abc", "abc", ""),
        ("abcd", "cdef", "ef"),
        ("aaaa", "aaaab", "b"),
        ("xaab", "aabaab", "aab"),
        ("ab" * 50, "b" + "ab" * 10 + "c", "c"),
        ("abc", "xyz", None),
        ("abc", "", None),
    ],
)
def test_what_is_new_of_a_sliding_text(before: str, after: str, new: str | None) -> None:
    assert console_module.added(before, after) == new


# -- events ------------------------------------------------------------------------------------------------


def test_events_that_are_kept(room: ControlRoom, run: Run) -> None:
    room.happen("vm.created", vm(state="creating", task=TASK))
    room.happen("node.updated", node())
    room.happen("vm.updated", vm())
    lines = run("events").stdout.splitlines()
    assert lines == [
        "1001  2026-11-23 12:00:00  vm.created          web-1                 creating (start)",
        "1002  2026-11-23 12:00:00  node.updated        node-1                up",
        "1003  2026-11-23 12:00:00  vm.updated          web-1                 running",
    ]
    assert run("events --after 1001 --type vm").stdout.splitlines() == [lines[2]]
    assert [json.loads(line)["seq"] for line in run("events -o json").stdout.splitlines()] == [1001, 1002, 1003]


def test_events_that_are_no_longer_kept(room: ControlRoom, run: Run) -> None:
    room.happen("vm.created", vm())
    room.forget()
    result = run("events")
    assert result.stdout == ""
    assert result.stderr == "note: older changes are no longer kept; going on after 1001\n"


def test_an_event_cannot_act_on_the_terminal(room: ControlRoom, run: Run) -> None:
    room.happen("vm.updated", vm() | {"name": "\x1b[2J\n1002 vm.deleted"})
    for line in ("events", "events -o json"):
        shown = run(line).stdout
        assert shown.count("\n") == 1
        assert shown.rstrip("\n").isprintable()
