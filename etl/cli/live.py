"""The moving display of a run in a terminal."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from etl.cli.screen import Screen
from etl.events import ChannelStats, Event, FlowStats, Retrying, RunStats
from etl.figures import duration, plural, printable, short_count, size
from etl.observe.rates import Rates
from etl.observe.sentences import sentence

REFRESH_S = 0.15
_RATE_SAMPLES = 20  # the last three seconds
_MOST_FLOWS = 12
_BAR = 8
# Columns that the figures beside a name take.
_FIGURES = 52
_TITLE = 64
_SHORTEST_NAME = 8


class LiveView:
    """One line a flow, drawn on stderr while the run goes on; it is wiped at the end.

    With more flows than lines the running ones come first, and one line holds the rest.
    """

    every_s: float = REFRESH_S

    def __init__(self, screen: Screen, pipeline: str) -> None:
        self._screen = screen
        self._pipeline = pipeline
        self._rates = Rates(samples=_RATE_SAMPLES)
        self._console = Console(file=screen.terminal, highlight=False, markup=False, emoji=False)
        self._fancy = (self._console.encoding or "").lower().startswith("utf")
        self._live = Live(
            Text(f"{printable(pipeline)}: opening the databases"),
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=screen.shared,
        )
        self._live.start()
        self._live.refresh()
        screen.divert(self._above)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Retrying):
            self._screen.say(sentence(event), style="yellow")

    def tick(self, stats: RunStats) -> None:
        """Draw the figures of now."""
        self._rates.sample(stats)
        self._live.update(self._drawn(stats), refresh=True)

    def close(self) -> None:
        """Wipe the display and give the terminal back."""
        self._screen.divert(None)
        self._live.stop()

    def _above(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _drawn(self, stats: RunStats) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
        names = max(_SHORTEST_NAME, self._console.width - _FIGURES)
        table.add_column("flow", no_wrap=True, overflow="ellipsis", max_width=names)
        for name in ("read", "written", "rows/s", "bytes"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("channel", no_wrap=True)
        shown, rest = self._choice(stats["flows"])
        for flow in shown:
            table.add_row(*self._cells(flow))
        lines: list[Table | Text] = [self._title(stats), table]
        if rest:
            lines.append(Text(_rest_line(rest), style="dim"))
        return Group(*lines)

    def _choice(self, flows: list[FlowStats]) -> tuple[list[FlowStats], list[FlowStats]]:
        """The flows to draw and those to sum up. All in their own order where there is room."""
        room = max(1, min(_MOST_FLOWS, self._console.height - 5))
        if len(flows) <= room:
            return flows, []
        order = {"running": 0, "waiting": 1, "ended": 2}
        ranked = sorted(flows, key=lambda flow: order[flow["state"]])
        return ranked[:room], ranked[room:]

    def _title(self, stats: RunStats) -> Text:
        read = sum(flow["rows_read"] for flow in stats["flows"])
        written = sum(flow["rows_written"] for flow in stats["flows"])
        text = Text(printable(stats["pipeline"]), style="bold", no_wrap=True, overflow="ellipsis")
        text.truncate(max(_SHORTEST_NAME, self._console.width - _TITLE), overflow="ellipsis")
        text = Text(no_wrap=True, overflow="ellipsis").append_text(text)
        text.append(f"  {stats['state']} {duration(stats['elapsed_s'])}")
        text.append(f"  {short_count(read)} rows read, {short_count(written)} written")
        text.append(f", {short_count(self._rates.total)} rows/s")
        return text

    def _cells(self, flow: FlowStats) -> tuple[Text, ...]:
        style = "dim" if flow["state"] == "ended" else ""
        running = flow["state"] == "running"
        cells = (
            printable(flow["name"]),
            short_count(flow["rows_read"]),
            short_count(flow["rows_written"]),
            short_count(self._rates.of(flow["name"])) if running else "",
            size(flow["bytes_read"]),
        )
        last = self._bar(flow["channels"]) if running else Text(flow["state"])
        last.stylize(style)
        return (*(Text(cell, style=style) for cell in cells), last)

    def _bar(self, channels: list[ChannelStats]) -> Text:
        """How full the fullest channel of a flow is: full means that what follows is slower."""
        if not channels:
            return Text("")
        fill = max(map(_fill, channels))
        full, empty = ("█", "░") if self._fancy else ("#", ".")
        blocks = round(fill * _BAR)
        return Text(f"{full * blocks}{empty * (_BAR - blocks)} {fill:4.0%}")


def _fill(channel: ChannelStats) -> float:
    by_count = channel["batches"] / max(1, channel["capacity_batches"])
    by_size = channel["nbytes"] / max(1, channel["capacity_nbytes"])
    return min(1.0, max(by_count, by_size))


def _rest_line(flows: list[FlowStats]) -> str:
    states = [flow["state"] for flow in flows]
    parts = [
        f"{states.count(state)} {state}"
        for state in ("running", "waiting", "ended")
        if state in states
    ]
    rows = sum(flow["rows_read"] for flow in flows)
    return f"and {plural(len(flows), 'flow')} more ({', '.join(parts)}), {short_count(rows)} rows"
