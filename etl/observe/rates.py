"""Rows a second, from figures that only count up."""

from __future__ import annotations

from etl.events import RunStats


class Rates:
    """Keeps the last samples of ``run.stats()``; with one only, rates count from the start.

    Args:
        samples: How many samples the rates span.
    """

    def __init__(self, *, samples: int) -> None:
        self._most = samples
        self._samples: list[tuple[float, dict[str, int]]] = []

    def sample(self, stats: RunStats) -> None:
        """Take the figures of now."""
        rows = {flow["name"]: flow["rows_read"] for flow in stats["flows"]}
        self._samples.append((stats["elapsed_s"], rows))
        del self._samples[: -self._most]

    def of(self, flow: str) -> float:
        """Rows a second of one flow; 0 before the first sample."""
        if not self._samples:
            return 0.0
        (began, first), (now, last) = self._window()
        return (last.get(flow, 0) - first.get(flow, 0)) / (now - began) if now > began else 0.0

    @property
    def total(self) -> float:
        """Rows a second of all flows."""
        return sum(self.of(name) for name in (self._samples[-1][1] if self._samples else ()))

    def _window(self) -> tuple[tuple[float, dict[str, int]], tuple[float, dict[str, int]]]:
        last = self._samples[-1]
        if len(self._samples) == 1:
            return (0.0, {}), last  # since the start
        return self._samples[0], last
