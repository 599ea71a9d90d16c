"""Windows of migration policies at the command line: `mon-fri 22:00-05:00 Europe/Berlin`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from novacron.model.policy import DAYS

if TYPE_CHECKING:
    from novacron.client.migration_policies import Window

RULE = "give days, times and maybe a time zone: 'mon-fri 22:00-05:00 Europe/Berlin', 'sat,sun 00:00-00:00', 'daily ...'"


class WindowType(click.ParamType[Any]):
    """Days, times, and the time zone they are meant in (UTC)."""

    name = "window"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from novacron.client.migration_policies import Window

        if isinstance(value, Window):
            return value
        parts = str(value).split()
        days, times, zone = (*parts, "UTC")[:3] if len(parts) in (2, 3) else ("", "", "")
        begins, dash, ends = times.partition("-")
        named = _days(days)
        if not named or not dash:
            self.fail(f"{value!r} is not a window: {RULE}", param, ctx)
        return Window(days=named, begins=begins, ends=ends, timezone=zone)


WINDOW = WindowType()


def _days(text: str) -> list[str]:
    """The days meant; none: it is not understood."""
    if text == "daily":
        return list(DAYS)
    found: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            return []
        begin, end = DAYS.index(first), DAYS.index(last or first)
        found += [DAYS[at % len(DAYS)] for at in range(begin, end + 1 if end >= begin else end + 1 + len(DAYS))]
    return list(dict.fromkeys(found))


def words(windows: list[Window]) -> str:
    """The windows for people; `at any time` where there are none."""
    return "; ".join(f"{','.join(one.days)} {one.begins}-{one.ends} {one.timezone}" for one in windows) or "at any time"
