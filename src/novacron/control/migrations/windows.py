"""When migrations may begin: the weekly windows of a policy on the calendar of their time zone. Pure.

A window that ends before it begins goes on into the next day. Where clocks are put forward or back, it begins and ends
by the clock on the wall.
"""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Iterable, Iterator

from novacron.errors import InvalidInput
from novacron.model.policy import DAYS, Window

LOOK_DAYS = 16
"""A window opens once a week, and may fall in an hour that clocks leave out; one of yesterday may still be open."""


def zone(name: str) -> datetime.tzinfo:
    """The time zone of that name. :raise InvalidInput: this server knows none; names the field."""
    if name == "UTC":
        return datetime.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as wrong:
        remedy = "give a name as Europe/Berlin, or install tzdata on the server"
        raise InvalidInput.field("windows", f"time zone {name!r} is not known", remedy) from wrong


def opens_at(windows: Iterable[Window], now: datetime.datetime) -> datetime.datetime | None:
    """When the next of them opens, in UTC; None: one is open, or there are none. :raise InvalidInput: see `zone`."""
    spans = [span for window in windows for span in _spans(window, now)]
    if not spans or any(begins <= now < ends for begins, ends in spans):
        return None
    return min(begins for begins, _ in spans if begins > now)


def _spans(window: Window, now: datetime.datetime) -> Iterator[tuple[datetime.datetime, datetime.datetime]]:
    """The window's times around now, in UTC."""
    tz = zone(window.timezone)
    begins, ends = datetime.time.fromisoformat(window.begins), datetime.time.fromisoformat(window.ends)
    first = now.astimezone(tz).date() - datetime.timedelta(days=1)
    for number in range(LOOK_DAYS):
        day = first + datetime.timedelta(days=number)
        if DAYS[day.weekday()] in window.days:
            last = day if ends > begins else day + datetime.timedelta(days=1)
            span = datetime.datetime.combine(day, begins, tz), datetime.datetime.combine(last, ends, tz)
            opens, closes = (moment.astimezone(datetime.UTC) for moment in span)
            if opens < closes:
                yield opens, closes


def words(windows: Iterable[Window]) -> str:
    """The windows for a sentence."""
    return ", ".join(f"{'+'.join(one.days)} {one.begins}-{one.ends} {one.timezone}" for one in windows)
