"""Rows a second, read or written, whichever is more: a full channel holds reading up at times."""

from __future__ import annotations

from typing import TypeAlias

from etl.events import RunStats

_Sample: TypeAlias = tuple[float, dict[str, tuple[int, int]]]  # seconds; rows read and written


class Rates:
    """Keeps the last samples of ``run.stats()``; with one only, rates count from the start.

    Args:
        samples: How many samples the rates span.
    """

    def __init__(self, *, samples: int) -> None:
        self._most = samples
        self._samples: list[_Sample] = []

    def sample(self, stats: RunStats) -> None:
        """Take the figures of now."""
        rows = {flow["name"]: (flow["rows_read"], flow["rows_written"]) for flow in stats["flows"]}
        self._samples.append((stats["elapsed_s"], rows))
        del self._samples[: -self._most]

    def of(self, flow: str) -> float:
        """Rows a second of one flow; 0 before the first sample."""
        if not self._samples:
            return 0.0
        (began, first), (now, last) = self._window()
        if now <= began or flow not in last:
            return 0.0
        read, written = first.get(flow, (0, 0))
        return max(last[flow][0] - read, last[flow][1] - written) / (now - began)

    @property
    def total(self) -> float:
        """Rows a second of all flows."""
        return sum(self.of(name) for name in (self._samples[-1][1] if self._samples else ()))

    def _window(self) -> tuple[_Sample, _Sample]:
        last = self._samples[-1]
        if len(self._samples) == 1:
            return (0.0, {}), last  # since the start
        return self._samples[0], last
