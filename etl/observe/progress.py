"""Progress as plain lines, for a pipe or a log file: some lines, not thousands."""

from __future__ import annotations

from collections.abc import Callable

from etl.events import Committed, Event, Note, RunEnded, RunStarted, RunStats, StateChanged
from etl.figures import count, duration, plural, size
from etl.observe.rates import Rates
from etl.observe.sentences import sentence

_MOST_FLOWS = 8


class ProgressLines:
    """An observer that writes the start, the end of each flow, and figures now and then.

    The owner calls :meth:`tick` every few seconds with ``run.stats()``. A flow that did not move
    since is left out; with many flows one line holds the sum. Stopping, the end of the run and
    the notes are left to the owner, who says them better: it knows why, and what follows.

    Args:
        write: Takes one line without its end.
        verbose: Also a line for each commit and each change of state.
    """

    def __init__(self, write: Callable[[str], object], *, verbose: bool = False) -> None:
        self._write = write
        self._verbose = verbose
        self._pipeline = ""
        self._seen: dict[str, tuple[int, int]] = {}
        self._rates = Rates(samples=2)

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._pipeline = event.pipeline
        if isinstance(event, Note | RunEnded):
            return
        if isinstance(event, Committed | StateChanged) and not self._verbose:
            return
        self._write(f"{self._pipeline}: {sentence(event)}")

    def tick(self, stats: RunStats) -> None:
        """Write what moved since the last call."""
        self._rates.sample(stats)
        running = [flow for flow in stats["flows"] if flow["state"] == "running"]
        moved = [
            flow
            for flow in running
            if self._seen.get(flow["name"]) != (flow["rows_read"], flow["rows_written"])
        ]
        if not moved:
            return
        where = f"{stats['pipeline']}: {duration(stats['elapsed_s'])}"
        if len(moved) > _MOST_FLOWS:
            read = sum(flow["rows_read"] for flow in stats["flows"])
            written = sum(flow["rows_written"] for flow in stats["flows"])
            self._write(
                f"{where}: {plural(len(running), 'flow')} running, {count(read)} rows read,"
                f" {count(written)} written, {count(round(self._rates.total))} rows/s"
            )
        else:
            for flow in moved:
                self._write(
                    f"{where}: {flow['name']}: {count(flow['rows_read'])} rows read,"
                    f" {count(flow['rows_written'])} written,"
                    f" {count(round(self._rates.of(flow['name'])))} rows/s,"
                    f" {size(flow['bytes_read'])}"
                )
        for flow in moved:
            self._seen[flow["name"]] = (flow["rows_read"], flow["rows_written"])
