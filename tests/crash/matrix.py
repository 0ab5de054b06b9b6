"""End a run at the k-th time that it reaches a named point, for each point and k = 1, 2, ...

``python -m tests.crash.matrix`` (``make crash-matrix``) does so for every setting: each case of
``cases.py``, read incrementally or as a whole, in small and in large batches, from and into
PostgreSQL and SQLite. ``k`` grows until a run ends unharmed. After each crash the target must
hold exactly the effect of the items up to the recorded position; after one more run, that of one
clean run. Where ``k`` is above 1, that next run is ended once as well. ``test_crash_points.py``
takes a selection in which each two options meet.
"""

from __future__ import annotations

import argparse
import platform
import sqlite3
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import astuple, dataclass
from itertools import combinations, count, product
from pathlib import Path
from typing import Protocol

import asyncpg

from etl.engine.failpoints import CRASHED, POINTS
from tests.benchmarks.server import databases, fetch_value, server
from tests.crash.cases import CASES, Effect, Item
from tests.crash.nursery import nursery
from tests.crash.outside import Outside, PostgresOutside, SqliteOutside

ITEMS = [Item(n, f"kind {n % 7}\tä\\", n * 3) for n in range(1, 151)]
OLD = [Item(0, "old", 0)]
"""What a table holds that a run replaces."""
_LATER = 3  # the time that a point is reached, when some rows have been committed


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What the run under test does."""

    case: str
    reading: str
    cut: str
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source} to {self.target}, {self.case}, {self.reading}, {self.cut} batches"


OPTIONS: Mapping[str, Sequence[str]] = {
    "case": tuple(CASES),
    "reading": ("incremental", "full"),
    "cut": ("small", "large"),
    "source": ("sqlite", "postgresql"),
    "target": ("sqlite", "postgresql"),
}


def every() -> list[Setting]:
    """The full product, without what a plan refuses."""
    settings = [Setting(*values) for values in product(*OPTIONS.values())]
    # What shows at the end is made anew each time, so that nothing of it is read incrementally.
    return [
        one for one in settings if one.reading == "full" or not CASES[one.case].shows_at_the_end
    ]


def pairwise() -> list[Setting]:
    """A selection in which each two values of two options meet. Greedy, so not the smallest."""

    def pairs_of(setting: Setting) -> set[tuple[tuple[int, str], ...]]:
        return set(combinations(enumerate(astuple(setting)), 2))

    settings = every()
    left = set[tuple[tuple[int, str], ...]]().union(*map(pairs_of, settings))
    chosen: list[Setting] = []
    while left:
        best = max(settings, key=lambda setting: len(pairs_of(setting) & left))
        chosen.append(best)
        left -= pairs_of(best)
    return chosen


@dataclass(slots=True)
class Tally:
    """What was tried."""

    settings: int = 0
    crashes: int = 0
    runs: int = 0

    def __str__(self) -> str:
        return (
            f"{self.settings} settings, {len(POINTS)} points: {self.crashes} crashes,"
            f" {self.runs} runs, 0 rows lost, 0 doubled"
        )


class Runs(Protocol):
    """What runs the pipeline under test: a nursery."""

    def run(self, *job: str) -> tuple[int, str]: ...


class Matrix:
    """The databases of a matrix, and what happens in them."""

    def __init__(
        self, sources: Mapping[str, Outside], targets: Mapping[str, Outside], runs: Runs
    ) -> None:
        self.tally = Tally()
        self._sources = sources
        self._targets = targets
        self._runs = runs
        for source in sources.values():
            source.make_table("items", ITEMS)

    def try_setting(
        self,
        setting: Setting,
        hits: Iterable[int] | None = None,
        points: Sequence[str] = POINTS,
    ) -> None:
        """Crash at each point.

        Args:
            hits: At which times the point is reached; stops when it was not. None: at all.

        Raises:
            AssertionError: The target is not what it should be.
        """
        self.tally.settings += 1
        reached: set[str] = set()
        for point in points:
            for hit in hits or count(1):
                if not self._crash(setting, point, hit):
                    break
                reached.add(point)
        _refuse_missed(setting, set(points) - reached)

    def try_some(self, setting: Setting, number: int) -> None:
        """Crash once at each point: before the first commit, or after some where it comes again.

        Args:
            number: Of this setting; of two after one another each point is tried in both ways.

        Raises:
            AssertionError: The target is not what it should be.
        """
        self.tally.settings += 1
        missed = {
            point
            for turn, point in enumerate(POINTS, number)
            if not (turn % 2 and self._crash(setting, point, _LATER))
            and not self._crash(setting, point, 1)
        }
        _refuse_missed(setting, missed)

    def _crash(self, setting: Setting, point: str, hit: int) -> bool:
        """Crash in fresh targets, run again; whether the point was reached."""
        case = CASES[setting.case]
        for target, tables in self._filled(setting):
            target.empty()
            for name in tables if case.shows_at_the_end else ():
                target.make_table(name, OLD)
        where = f"{setting}, {point}:{hit}"
        if self._run(setting, f"{point}:{hit}", where) == 0:
            self._check_complete(setting, where)
            return False
        self.tally.crashes += 1
        is_done = self._check_crashed(setting, where)
        # Over a complete load a full upsert reads all again: then the position says less.
        if hit > 1 and not is_done and self._run(setting, f"{point}:1", where) == CRASHED:
            # A crash in the run that was to mend it, too.
            self.tally.crashes += 1
            self._check_crashed(setting, where)
        assert self._run(setting, "", where) == 0
        self._check_complete(setting, where)
        return True

    def _run(self, setting: Setting, failpoint: str, where: str) -> int:
        (second,) = (self._targets[kind].url for kind in self._targets if kind != setting.target)
        self.tally.runs += 1
        status, why = self._runs.run(
            self._sources[setting.source].url,
            self._targets[setting.target].url,
            second,
            setting.case,
            setting.reading,
            setting.cut,
            failpoint,
        )
        assert status in {0, CRASHED}, f"{where}: exit {status}: {why}"
        return status

    def _filled(self, setting: Setting) -> Iterator[tuple[Outside, Mapping[str, Effect]]]:
        """The two targets, each with the tables that the case fills there."""
        case = CASES[setting.case]
        for kind, target in self._targets.items():
            yield target, case.tables if kind == setting.target else case.second

    def _check_crashed(self, setting: Setting, where: str) -> bool:
        """Check what a crash has left; whether all rows are in."""
        case = CASES[setting.case]
        is_done = True
        for target, tables in self._filled(setting):
            rows, position = target.look(tables)
            upto = int(position[0]) if position else 0
            for name, effect in tables.items():
                found = rows[name]
                is_done = is_done and found == sorted(effect(ITEMS))
                if case.shows_at_the_end:
                    whole = sorted(effect(ITEMS))
                    assert found in (sorted(map(astuple, OLD)), whole), f"{where}: {name} is torn"
                elif case.one_position:
                    expected = sorted(effect(ITEMS[:upto]))
                    assert found == expected, (
                        f"{where}: {len(found)} rows in {name}, {len(expected)} up to {position}"
                    )
        return is_done

    def _check_complete(self, setting: Setting, where: str) -> None:
        ends = CASES[setting.case].ends
        for target, filled in self._filled(setting):
            tables = {**filled, **(ends if target.url == self._targets[setting.target].url else {})}
            rows, _ = target.look(tables)
            for name, effect in tables.items():
                assert rows[name] == sorted(effect(ITEMS)), f"{where}: {name} differs in the end"


def _refuse_missed(setting: Setting, points: Collection[str]) -> None:
    """Points that no run came to.

    Raises:
        AssertionError: They should have been reached.
    """
    # Publishing exists for a replace and for rows that are gathered; the rest in each run.
    if CASES[setting.case].shows_at_the_end:
        assert not points, f"{setting}: never reached {points}"
    else:
        assert all("publish" in point for point in points), f"{setting}: {points}"


def sqlite_files(folder: Path) -> tuple[SqliteOutside, SqliteOutside]:
    """A source and a target."""
    return SqliteOutside(folder / "source.db"), SqliteOutside(folder / "target.db")


def _versions(url: str) -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    yield f"SQLite {sqlite3.sqlite_version}"
    yield f"PostgreSQL {fetch_value(url, 'SHOW server_version')}"
    yield f"asyncpg {asyncpg.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for option, values in OPTIONS.items():
        parser.add_argument(f"--{option}", choices=values, action="append", help="default: all")
    args = vars(parser.parse_args())
    settings = [
        setting
        for setting in every()
        if all(getattr(setting, option) in (args[option] or OPTIONS[option]) for option in OPTIONS)
    ]
    with ExitStack() as stack:
        url = stack.enter_context(server())
        print(", ".join(_versions(url)), flush=True)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = sqlite_files(folder)
        made = [
            stack.enter_context(closing(PostgresOutside(one)))
            for one in stack.enter_context(databases(url))
        ]
        matrix = Matrix(
            {"sqlite": files[0], "postgresql": made[0]},
            {"sqlite": files[1], "postgresql": made[1]},
            stack.enter_context(nursery()),
        )
        for setting in settings:
            started, before = time.monotonic(), matrix.tally.crashes
            matrix.try_setting(setting)
            took = time.monotonic() - started
            print(f"{setting}: {matrix.tally.crashes - before} crashes, {took:.0f} s", flush=True)
        print(f"together: {matrix.tally}")


if __name__ == "__main__":
    main()
