"""Run the benchmarks: ``python -m tests.benchmarks [WORK ...]``."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from shutil import which
from statistics import median

from tests.benchmarks.catalogue import NAMES, load
from tests.benchmarks.lineitem import generator, sqlite_target
from tests.benchmarks.measure import ROOT, ContenderFailedError, Measure, measure_apart, middle
from tests.benchmarks.server import databases, server, settings
from tests.benchmarks.work import Contender, Place, Work


def main() -> int:
    """Run the works that were named; 1 where a contender failed or left something wrong."""
    chosen = _arguments()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="etl-bench-"))
        url = stack.enter_context(server())
        source, target = stack.enter_context(databases(url))
        place = Place(source=source, target=target, folder=folder, rows=chosen.rows)
        # The tables that etl keeps are there, as in every run but the first into a database.
        for url_of_target in (target, f"sqlite:///{sqlite_target(place)}"):
            command = [sys.executable, "-m", "etl", "migrate", url_of_target]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        _print_setting(url, chosen.rows)
        failed = [
            name
            for name in chosen.works or NAMES
            if not _run(name, load(name), place, chosen.rounds, chosen.contender)
        ]
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--rows", type=int, default=300_000, help="rows of lineitem")
    parser.add_argument("--rounds", type=int, help="runs of each contender; the median counts")
    parser.add_argument("--contender", help="run only contenders whose name holds this text")
    chosen = parser.parse_args()
    for name in chosen.works:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}; there are {', '.join(NAMES)}")
    return chosen


def _print_setting(url: str, rows: int) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {_version(name)}" for name in ("asyncpg", "aiosqlite")), end=", ")
    print(f"{platform.system()} {platform.machine()}")
    print("PostgreSQL: " + ", ".join(f"{name} {value}" for name, value in settings(url).items()))
    print(f"lineitem: {rows:,} rows from {'tpchgen-cli' if generator() else 'our own generator'}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def _run(name: str, work: Work, place: Place, rounds: int | None, wanted: str | None) -> bool:
    """Measure a work's contenders in turns and print the table; False where one failed."""
    print(f"\n## {work.title}\n", flush=True)
    work.prepare(place)
    contenders = [
        one
        for one in work.contenders
        if all(map(which, one.needs)) and (wanted is None or wanted in one.name)
    ]
    expected = work.expected(place)
    measured: dict[str, list[Measure]] = {one.name: [] for one in contenders}
    broken: dict[str, str] = {}
    if work.is_short:
        turns = contenders * (rounds or work.rounds)
        for one, measure in zip(turns, measure_apart(name, turns, place), strict=True):
            measured[one.name].append(measure)
    for _ in range(0 if work.is_short else rounds or work.rounds):
        # In turns, so that a noisy minute hits all of them.
        for one in contenders:
            if one.name in broken:
                continue
            work.reset(place)
            try:
                measured[one.name] += measure_apart(name, [one], place)
                if not one.bends and work.found(place) != expected:
                    raise ContenderFailedError("it left other rows than it should")
            except ContenderFailedError as error:
                broken[one.name] = str(error)
    results = {name: middle(found) for name, found in measured.items() if name not in broken}
    _print_table(work, contenders, results, place)
    for failed, reason in broken.items():
        print(f"\n{failed} FAILED: {reason}")
    _print_goals(work, results, measured)
    return not broken


def _print_table(
    work: Work, contenders: list[Contender], results: dict[str, Measure], place: Place
) -> None:
    reference = results.get(work.reference)
    rows = work.rows(place) if work.rows is not None else None
    print(
        "| contender | wall s | rows/s | times the rows/s of by hand | CPU s | server CPU s |"
        " peak MiB |"
    )
    print("|---|---|---|---|---|---|---|")
    for one in contenders:
        if (result := results.get(one.name)) is None:
            continue
        speed = f"{rows / result.wall_s:,.0f}" if rows is not None else "-"
        times = f"{reference.wall_s / result.wall_s:.2f}" if reference is not None else "-"
        memory = f"{result.peak_mib:.0f}"
        wall, cpu = f"{result.wall_s:.2f}", f"{result.cpu_s:.2f}"
        served = f"{result.server_s:.2f}"
        name = f"{one.name} (bends: {one.bends})" if one.bends else one.name
        print("|", " | ".join((name, wall, speed, times, cpu, served, memory)), "|")


def _print_goals(
    work: Work, results: dict[str, Measure], measured: dict[str, list[Measure]]
) -> None:
    for goal in work.goals:
        if goal.contender in results and goal.reference in results:
            # Of each round by itself: a machine may change its speed from one to the next.
            pairs = zip(measured[goal.contender], measured[goal.reference], strict=True)
            ratio = median(one.wall_s / other.wall_s for one, other in pairs)
            verdict = "reached" if ratio <= goal.at_most else "MISSED"
            print(
                f"\nGoal {verdict}: {goal.contender} takes {ratio:.2f} times as long as"
                f" {goal.reference}; at most {goal.at_most:.2f} is wanted."
            )
    if work.peak_mib is not None:
        peak = max((one.peak_mib for one in results.values()), default=0.0)
        verdict = "reached" if peak <= work.peak_mib else "MISSED"
        print(
            f"\nGoal {verdict}: peak memory {peak:.0f} MiB; at most {work.peak_mib:.0f} is wanted."
        )


if __name__ == "__main__":
    sys.exit(main())
