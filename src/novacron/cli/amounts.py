"""Sizes, rates and times: as people type them, and as they read them."""

from __future__ import annotations

import datetime
import re

_BINARY = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(?:([kmgtp])(i?b)?|b)?", re.ASCII | re.IGNORECASE)
_BITS = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([kmgt]?)bit(?:/s|ps)?", re.ASCII | re.IGNORECASE)
_TIME = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9}(?:\.[0-9]{1,6})?)s)?", re.ASCII)

SIZE_RULE = "2G and 2GiB are 2 × 1024³ bytes, 2GB is 2 × 1000³; also K, M, T"
RATE_RULE = "100MiB/s, 100M (the same), 1Gbit/s"
TIME_RULE = "30s, 500ms, 5m, 1h30m; a bare number is seconds"


def read_size(text: str) -> int:
    """Bytes in `text`. :raise ValueError: with what would be right."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: {SIZE_RULE}")
    number, prefix, unit = match.groups()
    table = _DECIMAL if unit and unit.lower() == "b" else _BINARY
    factor = table[prefix.lower()] if prefix else 1
    return _whole(number, factor, text)


def read_rate(text: str) -> int:
    """Bytes a second in `text`. :raise ValueError: with what would be right."""
    bits = _BITS.fullmatch(text.strip())
    if bits is not None:
        number, prefix = bits.groups()
        return int(float(number) * _DECIMAL.get(prefix.lower(), 1) / 8)
    try:
        return read_size(text.strip().removesuffix("/s"))
    except ValueError:
        raise ValueError(f"{text!r} is not a rate: {RATE_RULE}") from None


def read_time(text: str) -> float:
    """Seconds in `text`. :raise ValueError: with what would be right."""
    plain = text.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", plain, re.ASCII):
        return float(plain)
    if re.fullmatch(r"[0-9]{1,9}ms", plain, re.ASCII):
        return int(plain.removesuffix("ms")) / 1000
    match = _TIME.fullmatch(plain)
    if match is None or not any(match.groups()):
        raise ValueError(f"{text!r} is not a length of time: {TIME_RULE}")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def _whole(number: str, factor: int, text: str) -> int:
    exact = float(number) * factor
    if exact != int(exact):
        raise ValueError(f"{text!r} is not a whole number of bytes: {SIZE_RULE}")
    return int(number) * factor if number.isdecimal() else int(exact)


def size(count: float) -> str:
    """Bytes for people: `1.5 GiB`."""
    for unit, factor in (("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{_short(count / factor)} {unit}"
    return f"{count:.0f} B"


def rate(bytes_per_s: float) -> str:
    """Bytes a second for people: `90 MiB/s`."""
    return f"{size(bytes_per_s)}/s"


def seconds(span_s: float) -> str:
    """A length of time for people: `7.0 s`, `3m12s`, `2h05m`, `4d`."""
    if span_s < 60:
        return f"{span_s:.1f} s"
    minutes, rest = divmod(round(span_s), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 48 else f"{hours // 24}d"


def milliseconds(span_ms: float) -> str:
    """`12 ms`, `18.4 ms`, `7.0 s`."""
    return f"{span_ms:.1f}".removesuffix(".0") + " ms" if span_ms < 1000 else seconds(span_ms / 1000)


def age(then: datetime.datetime, now: datetime.datetime) -> str:
    """How long ago, in one figure: `5s`, `3m`, `2h`, `9d`. A server's clock that is ahead makes it `0s`."""
    past_s = max(0, int((now - then).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if past_s >= 2 * length:
            return f"{past_s // length}{unit}"
    return f"{past_s}s"


def now() -> datetime.datetime:
    """The wall clock, to show ages by."""
    from novacron.clock import SystemClock  # here: it brings asyncio, and only what shows ages needs it

    return SystemClock().wall()


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0") if number < 100 else f"{number:.0f}"
