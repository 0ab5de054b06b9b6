"""Events as JSON lines, for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from etl.events import Event

_WORD_START = re.compile(r"(?<=[a-z])(?=[A-Z])")


def as_record(event: Event) -> dict[str, Any]:
    """The event as a plain dict: ``event`` names it (``run_started``), then all its fields.

    ``time`` is now, in ISO 8601 and UTC.
    """
    name = _WORD_START.sub("_", type(event).__name__).lower()
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"event": name, "time": now, **asdict(event)}


def as_line(record: dict[str, Any]) -> str:
    """One JSON object on one line, in ASCII: nothing in it can steer a terminal."""
    return json.dumps(record, ensure_ascii=True, separators=(", ", ": "), default=str)


class JsonLines:
    """An observer that writes one JSON object for each event.

    The last line is ``run_ended`` with the report.

    Args:
        write: Takes one line without its end.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def __call__(self, event: Event) -> None:
        self._write(as_line(as_record(event)))
