"""Logging: one line a thing, whatever others put into it, and no secrets from the frames of a traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import logging, structlog
from novacron.control.log import set_up
set_up({format!r})
log = structlog.get_logger("test")
log.info("a name came", name="web\\n2026 [error] forged \\x1b[31m\\u202e")
logging.getLogger("uvicorn.error").error("theirs %s", "x\\ny")
def fail(token):
    raise RuntimeError("it broke")
try:
    fail("nct_" + "secret")
except RuntimeError:
    log.exception("caught")
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_others_send_forges_no_line_and_no_frame_tells_secrets(log_format: str) -> None:
    program = PROGRAM.format(format=log_format)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == ""
    assert "\x1b" not in ended.stderr
    assert "\u202e" not in ended.stderr
    assert "nct_secret" not in ended.stderr
    assert "it broke" in ended.stderr
    lines = ended.stderr.splitlines()
    assert not any(line.startswith("2026 [error] forged") for line in lines)
    assert "theirs" in lines[1]
    if log_format == "json":
        read = [json.loads(line) for line in lines]
        assert len(read) == 3
        assert [line["level"] for line in read] == ["info", "error", "error"]
        assert all(line["timestamp"].endswith("Z") for line in read)
