"""`novacron pool` and `novacron volume`: what is sent for each command, and what people read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from novacron.cli import pool as pool_commands
from novacron.cli import volume as volume_commands
from novacron.cli.disk_spec import read_disk
from novacron.errors import Conflict, Reason
from novacron.model.pool import PoolDriver
from novacron.model.volume import VolumeState
from tests.cli.conftest import Run
from tests.client.control_room import NODE_ID, VM_ID, VOLUME_ID, ControlRoom, pool, refused, said, vm, volume


def sent(room: ControlRoom, at: int = -1) -> Any:
    return json.loads(room.bodies[at])


def test_choices_are_the_models_words() -> None:
    assert list(pool_commands.DRIVERS) == list(PoolDriver)
    assert list(volume_commands.STATES) == list(VolumeState)


@pytest.mark.parametrize(
    ("text", "disk"),
    [
        ("10G", {"size_bytes": 10 << 30}),
        ("10G,pool=fast", {"size_bytes": 10 << 30, "pool": "fast"}),
        ("volume=data,boot=1", {"volume": "data", "boot_order": 1}),
        ("1G,iops=5,rate=1M", {"size_bytes": 1 << 30, "qos": {"iops": 5, "bytes_per_s": 1 << 20}}),
    ],
)
def test_what_a_disk_is(text: str, disk: dict[str, Any]) -> None:
    assert read_disk(text) == disk


@pytest.mark.parametrize(
    "text", ["", "pool=fast", "1G,volume=a", "1G,iops=x", "1G,boot=-1", "1G,rate=fast", "1G,path=/x", "volume=", "²"]
)
def test_what_is_no_disk(text: str) -> None:
    with pytest.raises(ValueError):
        read_disk(text)


def test_a_vm_with_disks_of_all_sorts(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms", said(vm(), 202))
    run("vm create web-1 --image tiny --root-pool fast --disk 1G,pool=slow,iops=9 --disk volume=data,boot=1")
    assert sent(room) == {
        "name": "web-1",
        "image": "tiny",
        "root_pool": "fast",
        "disks": [
            {"size_bytes": 1 << 30, "pool": "slow", "qos": {"iops": 9}},
            {"volume": "data", "boot_order": 1},
        ],
    }


# -- pools -------------------------------------------------------------------------------------------------


def test_pools_are_listed_and_shown(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/pools", said({"items": [pool()], "next_cursor": None}))
    room.on("GET", "/pools/fast", said(pool()))
    listed = run("pool list --driver directory -l a=b")
    assert listed.stdout.splitlines()[1].split() == [
        *("fast", "directory", "no", "1/2", "6", "GiB", "of", "10", "GiB", "2"),
        *("20", "GiB", "of", "40", "GiB", "5m"),
    ]
    assert dict(room.asked[0].query_params)["driver"] == "directory"
    shown = run("pool show fast").stdout
    assert "On node-1:  within reach, 6 GiB of 10 GiB free\n" in shown
    assert "On node-2:  out of reach: /srv/fast is missing\n" in shown
    assert "path:" in shown
    assert "2, 20 GiB of 40 GiB promised to guests\n" in shown
    room.on("GET", "/pools/fast", said(pool(quota_bytes=0)))
    assert "2, 20 GiB promised to guests\n" in run("pool show fast").stdout
    assert run("pool show fast -o name").stdout == "fast\n"


def test_a_pool_is_made_changed_and_forgotten(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/pools", said(pool(), 201))
    room.on("GET", "/pools/fast", said(pool()))
    room.on("PATCH", "/pools/fast", said(pool()))
    room.on("DELETE", "/pools/fast", said(None, 204))
    made = run("pool create fast --driver directory -O path=/srv/fast --shared --image-cache 1G --quota 2T --label a=b")
    assert made.stdout == "fast: made; novacron pool show fast says which nodes reach it\n"
    assert sent(room) == {
        "name": "fast",
        "driver": "directory",
        "options": {"path": "/srv/fast"},
        "shared": True,
        "labels": {"a": "b"},
        "image_cache_bytes": 1 << 30,
        "quota_bytes": 2 << 40,
    }
    assert run("pool update fast --quota 0").stdout == "fast: changed\n"
    assert sent(room) == {"quota_bytes": 0}
    assert run("pool update fast -O path=/srv/other --name faster").stdout == "fast: changed\n"
    assert sent(room) == {"name": "faster", "options": {"path": "/srv/other"}}
    assert room.asked[-1].headers["if-match"] == '"50"'
    assert run("pool delete fast --yes").stdout == "fast: deleted\n"
    assert run("pool update fast").exit_code == 2
    assert run("pool create fast --driver floppy").exit_code == 2


# -- volumes -----------------------------------------------------------------------------------------------


def test_volumes_are_listed_and_shown(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/volumes", said({"items": [volume()], "next_cursor": None}))
    room.on("GET", "/volumes/data", said(volume()))
    listed = run("volume list --pool fast --vm web-1 --state attached")
    assert listed.stdout.splitlines()[1].split() == ["data", "attached", "10", "GiB", "fast", "web-1", "5m"]
    query = dict(room.asked[0].query_params)
    assert (query["pool"], query["vm"], query["state"]) == ("fast", "web-1", "attached")
    shown = run("volume show data").stdout
    for line in (
        *("Size:     10 GiB, 3 GiB used", "Pool:     fast on node-1", "VM:       web-1, outlives it"),
        "Limits:   500 operations/s",
    ):
        assert line in shown, shown


def test_a_volume_is_made_and_waited_for(room: ControlRoom, run: Run) -> None:
    making = volume(state="creating", task="create", vm=None, vm_id=None)
    room.on("POST", "/volumes", said(making, 202))
    room.on("GET", f"/volumes/{VOLUME_ID}", said(making), said(volume(state="available", vm=None, vm_id=None)))
    room.happen("volume.updated", volume(state="available", vm=None, vm_id=None, revision=61))
    line = "volume create data --size 10G --pool fast --iops 5 --rate 1M --node node-1 --label a=b"
    assert run(line).stdout == "data: creating, 10 GiB\n"
    assert sent(room, 0) == {
        "name": "data", "size_bytes": 10 << 30, "pool": "fast", "node": "node-1", "labels": {"a": "b"},
        "qos": {"iops": 5, "bytes_per_s": 1 << 20},
    }  # fmt: skip
    run("volume create copy --from data --snapshot " + NODE_ID)
    assert sent(room) == {"name": "copy", "volume": "data", "snapshot": NODE_ID}
    assert run("volume create empty").exit_code == 2


def test_waiting_ends_with_the_volumes_problem(room: ControlRoom, run: Run) -> None:
    problem = {"code": "no_room", "message": "the pool is full", "at": "2026-11-23T12:00:00Z", "remedy": "make room"}
    room.on("POST", "/volumes", said(volume(state="creating", task="create"), 202))
    room.on("GET", f"/volumes/{VOLUME_ID}", said(volume(state="error", problem=problem)))
    failed = run("volume create data --size 10G --wait")
    assert failed.exit_code == 5
    assert "data: the pool is full" in failed.stderr


def test_a_volume_grows_and_gets_other_limits(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/volumes/data", said(volume()))
    room.on("PATCH", "/volumes/data", said(volume(task="grow"), 202))
    assert run("volume grow data 20G").stdout == "data: attached, 10 GiB\n"
    assert sent(room) == {"size_bytes": 20 << 30}
    assert run("volume update data --rate 2M --remove-label x").stdout == "data: changed\n"
    assert sent(room) == {"labels": {}, "qos": {"iops": 500, "bytes_per_s": 2 << 20}}


def test_a_volume_is_attached_and_detached(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms/web-1/disks", said(vm(), 202))
    assert run("volume attach data web-1 --boot 2").stdout == "web-1: data is attached\n"
    assert sent(room) == {"volume": "data", "boot_order": 2}
    room.on("GET", "/volumes/data", said(volume()))
    room.on("GET", f"/volumes/{VOLUME_ID}", said(volume(vm=None, vm_id=None)))
    room.on("DELETE", f"/vms/{VM_ID}/disks/{VOLUME_ID}", said(vm(), 202))
    assert run("volume detach data --wait").stdout == "data: detached\n"


def test_a_volume_in_use_is_not_deleted(room: ControlRoom, run: Run) -> None:
    reason = Reason("volume.attached", "it belongs to a VM", "web-1", "novacron volume detach data")
    room.on("DELETE", "/volumes/data", refused(Conflict("cannot delete volume data: it belongs to VM web-1", [reason])))
    failed = run("volume delete data --yes")
    assert failed.exit_code == 4
    assert "novacron volume detach data" in failed.stderr
    room.on("DELETE", "/volumes/data", said(volume(state="deleting", task="delete"), 202))
    assert run("volume delete data --yes").stdout == "data: is being deleted\n"
