"""``pipelines/flights.py`` on all its data: each of its rules, counted again from the CSV files.

The expected values are computed here in plain Python, and not with the pipeline's functions.
"""

from __future__ import annotations

import asyncio
import csv
import io
import sqlite3
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from rich.console import Console

from etl import Database, Report
from etl.databases.url import parse_url
from pipelines.flights import Airline, Airport, DayOfDelays, FlightFact, Plane, flights_pipeline
from pipelines.flights_commands import fetch, report
from pipelines.flights_source import build, csv_file

ROOT = Path(__file__).resolve().parents[2]
MINUTE = timedelta(minutes=1)
ISLANDS = {"SJU", "BQN", "STT", "PSE"}


ROWS: dict[str, tuple[type[Any], str]] = {
    "dim_airlines": (Airline, "carrier"),
    "dim_airports": (Airport, "faa"),
    "dim_planes": (Plane, "tailnum"),
    "fact_flights": (FlightFact, "id"),
    "delays_by_day": (DayOfDelays, "airport, day"),
}
"""Each table of the warehouse, with its columns and its key."""


class CsvFlight(NamedTuple):
    """A line of flights.csv, as text."""

    year: str
    month: str
    day: str
    dep_time: str
    sched_dep_time: str
    dep_delay: str
    arr_time: str
    sched_arr_time: str
    arr_delay: str
    carrier: str
    flight: str
    tailnum: str
    origin: str
    dest: str
    air_time: str
    distance: str
    hour: str
    minute: str
    time_hour: str

    @property
    def date(self) -> date:
        return date(int(self.year), int(self.month), int(self.day))


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What the CSV files hold."""

    flights: list[CsvFlight]
    airlines: dict[str, str]
    airports: dict[str, dict[str, str]]
    planes: set[str]
    weather: dict[tuple[str, str], dict[str, str]]
    weather_hours: Counter[tuple[str, str, str, str]]
    zones: dict[str, ZoneInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A source, the warehouse after one run, and the run's report."""

    source: str
    warehouse: str
    report: Report


def lines(table: str) -> Iterator[list[str]]:
    """The lines of a CSV file, without the header."""
    with csv_file(table) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        rows = csv.reader(text)
        next(rows)
        yield from rows


def dicts(table: str) -> Iterator[dict[str, str]]:
    with csv_file(table) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        yield from csv.DictReader(text)


def number(text: str) -> float | None:
    return None if text == "NA" else float(text)


def run(source: str, warehouse: str) -> Report:
    return flights_pipeline(Database(source), Database(warehouse)).run_sync()


def count(url: str, sql: str) -> int:
    return int(fetch(url, sql)[0][0])


def instant(value: Any) -> datetime | None:
    """A timestamp of either database, PostgreSQL's own or SQLite's ISO text, in UTC."""
    if value is None:
        return None
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    assert isinstance(moment, datetime)
    return moment.astimezone(UTC)


def clock(moment: datetime, zone: ZoneInfo) -> int:
    """What the clocks of a zone show, as the data write it."""
    local = moment.astimezone(zone)
    return local.hour * 100 + local.minute


@pytest.fixture(scope="module")
def files() -> Files:
    shared: dict[str, str] = {}  # most texts come thousands of times
    airports = {row["faa"]: row for row in dicts("airports")}
    zones = {faa: ZoneInfo(row["tzone"]) for faa, row in airports.items() if row["tzone"] != "NA"}
    return Files(
        flights=[CsvFlight(*(shared.setdefault(v, v) for v in row)) for row in lines("flights")],
        airlines={row["carrier"]: row["name"] for row in dicts("airlines")},
        airports=airports,
        zones=zones | dict.fromkeys(ISLANDS, ZoneInfo("America/Puerto_Rico")),
        planes={row["tailnum"] for row in dicts("planes")},
        weather={(row["origin"], row["time_hour"]): row for row in dicts("weather")},
        weather_hours=Counter(
            (row["origin"], row["month"], row["day"], row["hour"]) for row in dicts("weather")
        ),
    )


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("flights")
    source, warehouse = f"sqlite:///{folder}/flights.db", f"sqlite:///{folder}/warehouse.db"
    assert build(source)
    return Loaded(source=source, warehouse=warehouse, report=run(source, warehouse))


@pytest.fixture(scope="module")
def expected(loaded: Loaded) -> dict[str, int]:
    """The checksums of the warehouse after one run."""
    return digest(loaded.warehouse)


@pytest.fixture
def copied(loaded: Loaded, tmp_path: Path) -> Loaded:
    """A copy that a test may change."""
    urls: list[str] = []
    for url in (loaded.source, loaded.warehouse):
        path = Path(parse_url(url).path)
        urls.append(f"sqlite:///{tmp_path / path.name}")
        with (
            closing(sqlite3.connect(path)) as original,
            closing(sqlite3.connect(tmp_path / path.name)) as copy,
        ):
            original.backup(copy)
    return Loaded(source=urls[0], warehouse=urls[1], report=loaded.report)


# --- The source ------------------------------------------------------------------------------


def test_the_source_holds_every_line_in_order_and_na_is_null(loaded: Loaded) -> None:
    with closing(sqlite3.connect(parse_url(loaded.source).path)) as source:
        for table in ("airlines", "airports", "planes", "weather", "flights"):
            columns = [name for _, name, *_ in source.execute(f"PRAGMA table_info({table})")]
            extra = {"id", "updated_at"}
            names = ", ".join(name for name in columns if name not in extra)
            stored = source.execute(f"SELECT {names} FROM {table} ORDER BY rowid")
            for line, row in zip(lines(table), stored, strict=True):
                for text, value in zip(line, row, strict=True):
                    match value:
                        case None:
                            assert text == "NA"
                        case int() | float():
                            assert float(text) == value
                        case _:
                            assert text == value
        ids = source.execute("SELECT min(id), max(id), count(*) FROM flights").fetchone()
        assert ids == (1, 336_776, 336_776)
        assert source.execute("PRAGMA foreign_key_check").fetchall() == []


def test_a_second_build_does_nothing(loaded: Loaded) -> None:
    before = Path(parse_url(loaded.source).path).stat()

    assert not build(loaded.source)

    after = Path(parse_url(loaded.source).path).stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_build_that_was_killed_leaves_nothing_that_looks_built(tmp_path: Path) -> None:
    target, part = tmp_path / "flights.db", tmp_path / "flights.db.part"
    url = f"sqlite:///{target}"
    code = f"from pipelines.flights_source import build; build({url!r})"
    for size_mb in (1, 5, 20):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        while size_of(part) < size_mb * 1_000_000:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not target.exists()

    assert build(url)
    assert {path.name for path in tmp_path.iterdir()} == {"flights.db", "flights.db.lock"}
    assert count(url, "SELECT count(*) FROM flights") == 336_776


def test_a_build_that_was_killed_is_rolled_back_in_postgresql(postgres_url: str) -> None:
    code = f"from pipelines.flights_source import build; build({postgres_url!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    copied = "SELECT coalesce(sum(tuples_processed), 0) FROM pg_stat_progress_copy"
    while count(postgres_url, copied) < 50_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()

    assert build(postgres_url)
    assert count(postgres_url, "SELECT count(*) FROM flights") == 336_776


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


# --- The rules -------------------------------------------------------------------------------


def test_every_row_arrives(loaded: Loaded, files: Files) -> None:
    rows = {table: count(loaded.warehouse, f"SELECT count(*) FROM {table}") for table in ROWS}

    assert rows == {
        "dim_airlines": len(files.airlines),
        "dim_airports": len(files.airports) + len(ISLANDS),
        "dim_planes": len(files.planes),
        "fact_flights": len(files.flights),
        "delays_by_day": len({(flight.dest, flight.date) for flight in files.flights}),
    }
    assert loaded.report.status == "completed"


@dataclass(frozen=True, slots=True)
class Dirt:
    """A number that the pipeline states, and two ways to count it again."""

    what: str
    stated: int
    in_warehouse: str
    in_files: Callable[[Files], int]


DIRT = [
    Dirt(
        "flights to airports that the source lacks",
        7_602,
        "SELECT count(*) FROM fact_flights WHERE dest IN ('SJU', 'BQN', 'STT', 'PSE')"
        " AND scheduled_arrival IS NOT NULL",
        lambda files: sum(f.dest not in files.airports for f in files.flights),
    ),
    Dirt(
        "flights whose destination no airport in the warehouse matches",
        0,
        "SELECT count(*) FROM fact_flights f LEFT JOIN dim_airports a ON a.faa = f.dest"
        " WHERE a.faa IS NULL OR a.tzone IS NULL",
        lambda files: sum(f.dest not in files.zones for f in files.flights),
    ),
    Dirt(
        "flights without a tail number",
        2_512,
        "SELECT count(*) FROM fact_flights WHERE tailnum IS NULL",
        lambda files: sum(f.tailnum == "NA" for f in files.flights),
    ),
    Dirt(
        "tail numbers that are not in planes",
        721,
        "SELECT count(DISTINCT f.tailnum) FROM fact_flights f"
        " LEFT JOIN dim_planes p ON p.tailnum = f.tailnum WHERE p.tailnum IS NULL",
        lambda files: len({f.tailnum for f in files.flights} - files.planes - {"NA"}),
    ),
    Dirt(
        "flights of these",
        50_094,
        "SELECT count(f.tailnum) FROM fact_flights f"
        " LEFT JOIN dim_planes p ON p.tailnum = f.tailnum WHERE p.tailnum IS NULL",
        lambda files: sum(
            f.tailnum != "NA" and f.tailnum not in files.planes for f in files.flights
        ),
    ),
    Dirt(
        "flights that never left",
        8_255,
        "SELECT count(*) FROM fact_flights WHERE outcome = 'cancelled' AND departure IS NULL"
        " AND departure_delay_min IS NULL AND arrival IS NULL",
        lambda files: sum(f.dep_time == "NA" for f in files.flights),
    ),
    Dirt(
        "flights that left and have no delay on arrival",
        1_175,
        "SELECT count(*) FROM fact_flights WHERE outcome = 'diverted' AND departure IS NOT NULL"
        " AND arrival_delay_min IS NULL",
        lambda files: sum(f.dep_time != "NA" and f.arr_delay == "NA" for f in files.flights),
    ),
    Dirt(
        "of these, flights with a time of arrival",
        717,
        "SELECT count(arrival) FROM fact_flights WHERE outcome = 'diverted'",
        lambda files: sum(f.arr_time != "NA" and f.arr_delay == "NA" for f in files.flights),
    ),
    Dirt(
        "flights that arrived",
        327_346,
        "SELECT count(*) FROM fact_flights WHERE outcome = 'arrived' AND arrival IS NOT NULL"
        " AND arrival_delay_min IS NOT NULL AND air_time_min IS NOT NULL",
        lambda files: sum(f.arr_delay != "NA" for f in files.flights),
    ),
    Dirt(
        "flights in an hour without weather",
        1_556,
        "SELECT count(*) FROM fact_flights WHERE visibility_miles IS NULL AND temp_f IS NULL"
        " AND wind_mph IS NULL AND precip_inches IS NULL",
        lambda files: sum((f.origin, f.time_hour) not in files.weather for f in files.flights),
    ),
    Dirt(
        "airports without a time zone, where no flight goes",
        3,
        "SELECT count(*) FROM dim_airports WHERE tzone IS NULL"
        " AND faa NOT IN (SELECT dest FROM fact_flights)",
        lambda files: sum(a["tzone"] == "NA" for a in files.airports.values()),
    ),
    Dirt(
        "flights in an hour with a wind that no gauge believes",
        0,
        "SELECT count(*) FROM fact_flights WHERE wind_mph > 100",
        lambda files: 0,
    ),
]


@pytest.mark.parametrize("dirt", [pytest.param(dirt, id=dirt.what) for dirt in DIRT])
def test_the_dirt_is_counted(loaded: Loaded, files: Files, dirt: Dirt) -> None:
    assert count(loaded.warehouse, dirt.in_warehouse) == dirt.stated == dirt.in_files(files)


def test_what_needs_no_rule_is_copied(loaded: Loaded, files: Files) -> None:
    facts = fetch(
        loaded.warehouse,
        "SELECT id, day, carrier, carrier_name, flight, tailnum, origin, dest, distance_miles,"
        " departure_delay_min, arrival_delay_min, air_time_min FROM fact_flights ORDER BY id",
    )
    for i, (flight, fact) in enumerate(zip(files.flights, facts, strict=True), start=1):
        assert fact == (
            i,
            flight.date.isoformat(),
            flight.carrier,
            files.airlines[flight.carrier],
            int(flight.flight),
            None if flight.tailnum == "NA" else flight.tailnum,
            flight.origin,
            flight.dest,
            int(flight.distance),
            number(flight.dep_delay),
            number(flight.arr_delay),
            number(flight.air_time),
        )


def test_instants_agree_with_every_clock_delay_and_air_time(loaded: Loaded, files: Files) -> None:
    facts = fetch(
        loaded.warehouse,
        "SELECT scheduled_departure, departure, scheduled_arrival, arrival"
        " FROM fact_flights ORDER BY id",
    )
    zones = files.zones
    seen: Counter[str] = Counter()
    for flight, fact in zip(files.flights, facts, strict=True):
        scheduled, departure, due, arrival = map(instant, fact)
        origin, dest = zones[flight.origin], zones[flight.dest]
        assert scheduled is not None
        assert due is not None
        assert scheduled.astimezone(origin).date() == flight.date
        assert clock(scheduled, origin) == int(flight.sched_dep_time)
        assert clock(due, dest) == int(flight.sched_arr_time)
        assert 30 * MINUTE < due - scheduled < 720 * MINUTE
        assert (departure is None) == (flight.dep_time == "NA")
        assert (arrival is None) == (flight.arr_time == "NA")
        if departure is not None:
            assert clock(departure, origin) == int(flight.dep_time) % 2400
            assert departure - scheduled == int(flight.dep_delay) * MINUTE
            seen["left at 2400"] += flight.dep_time == "2400"
            seen["left at midnight"] += clock(departure, origin) == 0
        if departure is not None and arrival is not None:
            seen["arrived in the skipped hour"] += (
                clock(arrival, dest) != int(flight.arr_time) % 2400
            )
            seen["arrived at 2400"] += flight.arr_time == "2400"
            seen["arrived at midnight"] += clock(arrival, dest) == 0
            if flight.arr_delay != "NA":
                # The two checks that the clock times and the zones cannot fake.
                assert arrival - due == int(flight.arr_delay) * MINUTE
                on_the_ground = arrival - departure - int(flight.air_time) * MINUTE
                assert timedelta(0) < on_the_ground < 240 * MINUTE
            else:
                assert 120 * MINUTE < arrival - departure < 1440 * MINUTE

    assert seen == {
        "left at 2400": 29,
        "left at midnight": 29,
        "arrived at 2400": 150,
        "arrived at midnight": 150,
        "arrived in the skipped hour": 1,
    }


def test_the_weather_is_that_of_the_instant(loaded: Loaded, files: Files) -> None:
    assert [hour for hour, rows in files.weather_hours.items() if rows > 1] == [
        (origin, "11", "3", "1") for origin in ("EWR", "JFK", "LGA")
    ]
    assert len(files.weather) == files.weather_hours.total() == 26_115

    facts = fetch(
        loaded.warehouse,
        "SELECT temp_f, wind_mph, precip_inches, visibility_miles FROM fact_flights ORDER BY id",
    )
    columns = ("temp", "wind_speed", "precip", "visib")
    values = {key: tuple(number(w[c]) for c in columns) for key, w in files.weather.items()}
    for flight, fact in zip(files.flights, facts, strict=True):
        assert fact == values.get((flight.origin, flight.time_hour), (None,) * 4)


def test_delays_by_day_are_the_sums_of_the_flights(loaded: Loaded, files: Files) -> None:
    expected: dict[tuple[str, str], list[int]] = {}
    for f in files.flights:
        sums = expected.setdefault((f.dest, f.date.isoformat()), [0, 0, 0, 0, 0])
        sums[0] += 1
        sums[1] += f.dep_time == "NA"
        sums[2] += f.dep_time != "NA" and f.arr_delay == "NA"
        sums[3] += f.arr_delay != "NA"
        sums[4] += 0 if f.arr_delay == "NA" else int(f.arr_delay)

    columns = "airport, day, flights, cancelled, diverted, arrived, arrival_delay_min"
    stored = fetch(loaded.warehouse, f"SELECT {columns} FROM delays_by_day")
    assert {(airport, day): list(sums) for airport, day, *sums in stored} == expected

    by_sql = fetch(
        loaded.warehouse,
        "SELECT dest, day, count(*), count(*) - count(departure),"
        " sum(CASE outcome WHEN 'diverted' THEN 1 ELSE 0 END), count(arrival_delay_min),"
        " coalesce(sum(arrival_delay_min), 0) FROM fact_flights GROUP BY dest, day",
    )
    assert sorted(by_sql) == sorted(stored)


def test_the_report_shows_the_five_worst_airports(loaded: Loaded, files: Files) -> None:
    delays: dict[str, list[int]] = {}
    for flight in files.flights:
        if flight.arr_delay != "NA":
            delays.setdefault(flight.dest, []).append(int(flight.arr_delay))
    means = {dest: sum(of) / len(of) for dest, of in delays.items()}
    worst = sorted(means, key=lambda dest: -means[dest])[:5]
    text = io.StringIO()

    report(loaded.warehouse, Console(file=text, width=100))

    shown = [line for line in text.getvalue().splitlines() if any(code in line for code in worst)]
    assert len(shown) == 5
    for line, dest in zip(shown, worst, strict=True):
        assert dest in line
        assert f"{means[dest]:.1f}" in line


# --- Again, and later ------------------------------------------------------------------------


def test_a_second_run_moves_nothing(copied: Loaded, expected: dict[str, int]) -> None:
    again = run(copied.source, copied.warehouse)

    assert again.status == "completed"
    assert (again.rows_read, again.rows_written) == (0, 0)
    assert digest(copied.warehouse) == expected


def test_what_is_added_to_the_source_arrives_with_the_next_run(copied: Loaded) -> None:
    add_to_source(copied.source)
    # A time cursor leaves the youngest rows, which others may share their time with.
    young = "updated_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-0.25 seconds')"
    while count(copied.source, f"SELECT count(*) FROM planes WHERE {young}"):
        time.sleep(0.01)

    again = run(copied.source, copied.warehouse)

    moved = {flow.name: flow.rows_written for flow in again.flows}
    assert moved == {"airlines": 1, "airports": 0, "planes": 1, "facts": 3, "delays": 3}
    new = fetch(
        copied.warehouse,
        "SELECT id, carrier_name, dest, outcome, arrival FROM fact_flights WHERE id > 336776",
    )
    assert [row[:4] for row in new] == [
        (336_777, "New Air", "SJU", "arrived"),
        (336_778, "New Air", "XXX", "arrived"),
        (336_779, "United Air Lines Inc.", "SJU", "cancelled"),
    ]
    assert instant(new[0][4]) == datetime(2014, 1, 2, 5, 0, tzinfo=UTC)
    assert new[1][4] is None
    assert fetch(
        copied.warehouse, "SELECT * FROM delays_by_day WHERE airport IN ('SJU', 'XXX')"
        " AND day > '2013-12-31' ORDER BY airport",
    ) == [("SJU", "2014-01-01", 2, 1, 0, 1, 11), ("XXX", "2014-01-01", 1, 0, 0, 1, -5)]  # fmt: skip
    assert fetch(copied.warehouse, "SELECT year FROM dim_planes WHERE tailnum = 'N10156'") == [
        (2005,)
    ]
    assert run(copied.source, copied.warehouse).rows_read == 0


def add_to_source(url: str) -> None:
    """A new airline, a corrected plane, and three flights on the next day."""
    flight = (
        "INSERT INTO flights (year, month, day, dep_time, sched_dep_time, dep_delay, arr_time,"
        " sched_arr_time, arr_delay, carrier, flight, origin, dest, distance, hour, minute,"
        " time_hour) VALUES (2014, 1, 1, ?, 2000, ?, ?, 49, ?, ?, ?, 'JFK', ?, 1598, 20, 0,"
        " '2014-01-02T01:00:00Z')"
    )
    with closing(sqlite3.connect(parse_url(url).path)) as source, source:
        source.execute("INSERT INTO airlines (carrier, name) VALUES ('ZZ', 'New Air')")
        source.execute("UPDATE planes SET year = 2005 WHERE tailnum = 'N10156'")
        source.executemany(
            flight,
            [
                (2005, 5, 100, 11, "ZZ", 1, "SJU"),
                (2005, 5, 44, -5, "ZZ", 2, "XXX"),
                (None, None, None, None, "UA", 3, "SJU"),
            ],
        )


# --- PostgreSQL ------------------------------------------------------------------------------


def test_sqlite_into_postgresql(
    loaded: Loaded, expected: dict[str, int], postgres_url: str
) -> None:
    first = run(loaded.source, postgres_url)

    assert first.rows_written == loaded.report.rows_written
    assert digest(postgres_url) == expected
    again = run(loaded.source, postgres_url)
    assert (again.rows_read, again.rows_written) == (0, 0)


def test_postgresql_into_postgresql(
    loaded: Loaded, expected: dict[str, int], postgres_database: Callable[[], str]
) -> None:
    source, warehouse = postgres_database(), postgres_database()
    assert build(source)
    assert not build(source)
    # Some of the flights tell whether all of their types arrive.
    asyncio.run(execute(source, "DELETE FROM flights WHERE id > 20000"))

    run(source, warehouse)

    for table in ("dim_airlines", "dim_airports", "dim_planes"):
        assert checksum(warehouse, table) == expected[table]
    some = "WHERE id <= 20000"
    assert checksum(warehouse, "fact_flights", some) == checksum(
        loaded.warehouse, "fact_flights", some
    )
    again = run(source, warehouse)
    assert (again.rows_read, again.rows_written) == (0, 0)

    # The identity goes on counting after the last flight of the file.
    asyncio.run(execute(source, ANOTHER_FLIGHT))
    run(source, warehouse)
    assert count(warehouse, "SELECT max(id) FROM fact_flights") == 336_777


ANOTHER_FLIGHT = """
INSERT INTO flights (year, month, day, sched_dep_time, sched_arr_time, carrier, flight, origin,
                     dest, distance, hour, minute, time_hour)
VALUES (2014, 1, 1, 2000, 49, 'UA', 1, 'JFK', 'SJU', 1598, 20, 0, '2014-01-02T01:00:00Z')
"""


async def execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


def digest(url: str) -> dict[str, int]:
    """A number for each table: where two warehouses hold the same rows, the numbers are equal."""
    return {table: checksum(url, table) for table in ROWS}


def checksum(url: str, table: str, where: str = "") -> int:
    row, key = ROWS[table]
    columns = {column.name: "datetime" in str(column.type) for column in fields(row)}
    select = f"SELECT {', '.join(columns)} FROM {table} {where} ORDER BY {key}"
    total, offset = 0, 0
    while page := fetch(url, f"{select} LIMIT 50000 OFFSET {offset}"):
        offset += len(page)
        for values in page:
            plain = [
                instant(value)
                if is_instant
                else value.isoformat()
                if type(value) is date
                else value
                for value, is_instant in zip(values, columns.values(), strict=True)
            ]
            total = zlib.crc32(repr(plain).encode(), total)
    return total
