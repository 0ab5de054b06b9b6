"""How far an incremental read may go: never into a moment in which rows may still come.

An integer that grows with each row is safe up to the snapshot: SQLite has one writer at a
time. A time is not: a row written later in the same second has the same text.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from etl.errors import ConfigError

_TIME = re.compile(
    r"\d{4}-\d\d-\d\d(?:([ T])\d\d:\d\d(:\d\d)?([.,]\d+)?(Z|[+-]\d\d(?::?\d\d)?)?)?", re.ASCII
)
_MARGIN = timedelta(milliseconds=200)
_UNITS = (("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9))
_EARLIEST = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp())


def upper_bound(
    newest: Any, now: datetime, settle: timedelta | None, *, where: str
) -> str | int | None:
    """The value below which rows are final, in the form of the newest one; None: no bound.

    Args:
        newest: The greatest value of the cursor column.
        now: The present, aware. Texts without an offset are taken as UTC.
        settle: How long rows may still change.
        where: Names the column, for messages.

    Raises:
        ConfigError: ``settle`` is given and the values are not times.
    """
    if newest is None:
        return None
    if isinstance(newest, str):
        bound = _of_text(newest, now - (settle or timedelta(0)), settled=settle is not None)
        if bound is not None or settle is None:
            return bound
    elif settle is None:
        return None
    elif isinstance(newest, int):
        for _, per_second in _UNITS:
            # The units are a thousand apart: a plausible time is plausible in one of them only.
            latest = int((now + timedelta(days=366)).timestamp()) * per_second
            if _EARLIEST * per_second <= newest <= latest:
                return int((now - settle).timestamp() * per_second)
    raise ConfigError(
        f"{where}: settle= needs times: ISO text, or integers since 1970 in seconds or finer; the"
        " newest value is neither. Leave settle= out where the cursor is no time"
    )


def is_mixed(oldest: Any, newest: Any) -> bool:
    """Whether the values are of two kinds: a position of the one would leave the other out."""
    if isinstance(oldest, str) and isinstance(newest, str):
        return _TIME.fullmatch(oldest) is not None and _TIME.fullmatch(newest) is None
    return type(oldest) is not type(newest)


def looks_like_seconds(newest: Any, now: datetime) -> bool:
    """Whether an integer cursor seems to hold seconds since 1970: its last second is not safe."""
    return isinstance(newest, int) and abs(now.timestamp() - newest) < 86_400 * 366


def _of_text(newest: str, bound: datetime, *, settled: bool) -> str | None:
    match = _TIME.fullmatch(newest)
    if match is None:
        return None
    separator, seconds, fraction, zone = match.groups()
    bound = bound.astimezone(_zone_of(zone))
    if separator is None:
        return bound.strftime("%Y-%m-%d")
    if fraction is not None:
        # Finer than a second: writers need a moment between taking the time and committing.
        return _text(bound if settled else bound - _MARGIN, separator, "microseconds")
    return _text(bound, separator, "seconds" if seconds else "minutes")


def _text(moment: datetime, separator: str, digits: str) -> str:
    return moment.replace(tzinfo=None).isoformat(separator, digits)


def _zone_of(text: str | None) -> timezone:
    if text is None or text == "Z":
        return UTC
    hours, minutes = int(text[1:3]), int(text[-2:]) if len(text) > 3 else 0
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if text[0] == "-" else offset)
