"""`novacron server list`, and several servers behind one context."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.client.control_room import NOW, ControlRoom, said


def server(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"01940000-0000-7000-8000-00000000000{number}",
        "name": f"s{number}",
        "address": f"https://s{number}:8470",
        "version": "0.1.0",
        "started_at": NOW,
        "state": "up",
        "seen_ago_s": 0.0,
        "leads": False,
        "term": None,
        "leads_since": None,
        **changes,
    }


def test_servers_and_who_leads(room: ControlRoom, run: Run) -> None:
    items = [server(1, state="silent", seen_ago_s=42.0), server(2, leads=True, term=7, leads_since=NOW)]
    room.on("GET", "/servers", said({"items": items, "next_cursor": None}))
    header, one, two = run("server list").stdout.splitlines()
    assert header.split() == ["NAME", "STATE", "LEADS", "TERM", "SEEN", "VERSION", "AGE"]
    assert one.split()[:4] == ["s1", "silent", "-", "-"]
    assert two.split()[:3] == ["s2", "up", "for"]
    assert " 7 " in two
    assert [one["term"] for one in json.loads(run("server list -o json").stdout)] == [None, 7]
    assert "https://s2:8470" in run("server list -o wide").stdout


@pytest.mark.parametrize("line", ["--consistent server list", "server list --consistent"])
def test_answers_no_older_than_the_question(room: ControlRoom, run: Run, line: str) -> None:
    room.on("GET", "/servers", said({"items": [], "next_cursor": None}))
    run("server list")
    assert run(line).exit_code == 0
    assert [request.query_params.get("consistent") for request in room.asked] == [None, "true"]
    assert "--consistent" in run("--help").stdout


def test_a_context_of_several_servers(room: ControlRoom, run: Run) -> None:
    assert run("context set prod --server https://a:1,https://b:2").exit_code == 0
    assert "https://a:1,https://b:2" in run("context list").stdout
    assert run("context set prod --server https://a:1,http://b.example:2").exit_code == 5
