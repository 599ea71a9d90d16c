"""Text from elsewhere made harmless for a terminal: nothing a server or a guest wrote can move a cursor or hide."""

from __future__ import annotations

import re

# What terminals obey, as a whole: CSI …, OSC … up to BEL or ST, other strings up to ST, and two-character escapes.
_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)"
    r"|\x1b[PX^_][^\x1b]{0,4096}\x1b\\"
    r"|\x1b[ -/]*[0-~]"
)
_KEPT = frozenset("\n\t")


def line(text: str) -> str:
    """`text` on one line: every character that is not plainly visible is written as its escape."""
    return text if text.isprintable() else "".join(one if one.isprintable() else _escape(one) for one in text)


def lines(text: str) -> str:
    """The same, but line ends and tabs stay."""
    return "\n".join("\t".join(line(cell) for cell in row.split("\t")) for row in text.split("\n"))


def console(text: str) -> str:
    """What a guest wrote to its console: colours and cursor moves are dropped, what is left of them is escaped."""
    return lines(_SEQUENCE.sub("", text).replace("\r\n", "\n").replace("\r", ""))


def json_text(text: str) -> str:
    """JSON whose invisible characters, which JSON allows inside strings only, are written as JSON's own escapes."""
    return "".join(one if one.isprintable() or one in _KEPT else _json_escape(one) for one in text)


def _escape(one: str) -> str:
    return one.encode("unicode_escape", "surrogatepass").decode("ascii")


def _json_escape(one: str) -> str:
    units = one.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
