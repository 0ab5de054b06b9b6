"""How a run is shown while it goes on: a moving display, plain lines, or JSON lines."""

from __future__ import annotations

from typing import Protocol

from etl.cli.screen import Screen
from etl.events import Event, RunStats
from etl.observe.jsonlines import JsonLines
from etl.observe.progress import ProgressLines

LINES_EVERY_S = 5.0


class View(Protocol):
    """An observer that is also given ``run.stats()`` now and then.

    Attributes:
        every_s: Seconds between two ticks; None: it needs none.
    """

    @property
    def every_s(self) -> float | None: ...
    def __call__(self, event: Event) -> None: ...
    def tick(self, stats: RunStats) -> None: ...
    def close(self) -> None: ...


class LinesView(ProgressLines):
    """Plain lines on stderr."""

    every_s: float | None = LINES_EVERY_S

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen.say, verbose=screen.verbose)

    def close(self) -> None:
        """There is nothing to give back."""


class JsonView(JsonLines):
    """JSON lines on stdout."""

    every_s: float | None = None

    def __init__(self, screen: Screen) -> None:
        super().__init__(screen.out)

    def tick(self, stats: RunStats) -> None:
        """Events say enough."""

    def close(self) -> None:
        """There is nothing to give back."""


def make_view(screen: Screen, pipeline: str) -> View:
    """The view that suits the streams. ``--verbose`` has plain lines in a terminal too."""
    if screen.json:
        return JsonView(screen)
    if screen.live and not screen.verbose:
        from etl.cli.live import LiveView

        return LiveView(screen, pipeline)
    return LinesView(screen)
