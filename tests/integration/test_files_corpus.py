"""The awkward tables of ``corpus.py`` into files and back: equal, or refused by name."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from etl import ConfigError, Database, DataError, EtlError, File, Pipeline, PipelineFailedError
from etl.cli.copy import CopyOptions
from etl.cli.copyfile import FileOptions, plan_copy_to_files
from tests.integration.corpus import POSTGRES, POSTGRES_TYPES, SQLITE, Case
from tests.integration.postgres_kit import sql
from tests.integration.test_copy_corpus import moment, read, read_sqlite

TOGETHER = 20
LARGE = ("t_large_text", "t_large_bytea", "t_numeric_huge", "a_large", "s_1600")

# Tables that a form cannot hold, and what the refusal says.
REFUSED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "csv.gz": {},
    "jsonl": {
        "t_json": ("'v' (json)", "null"),
        "t_jsonb": ("'v' (jsonb)", "null"),
    },
    "parquet": {
        "t_numeric_15_2": ("'v' (numeric(15,2))", "decimal128(15, 2)"),
        "t_date": ("'v' (date)", "infinite"),
        "t_timestamp": ("'v' (timestamp without time zone)", "infinite"),
        "t_timestamptz": ("'v' (timestamp with time zone)", "infinite"),
        "t_time": ("'v' (time without time zone)", "hour 24"),
        "k_date": ("'k' (date)", "infinite"),
    },
}


async def into_files(source: str, names: Sequence[str], folder: Path, form: str) -> dict[str, File]:
    """Copy tables; the file of each."""
    options = CopyOptions(tables=tuple(names), views=True)
    copy = await plan_copy_to_files(
        Database(source), f"{folder}/", options, FileOptions(format=form)
    )
    await copy.pipeline.run()
    found: dict[str, File] = {}
    for flow in copy.pipeline.flows:
        (sink,) = flow.sinks
        assert isinstance(sink.target, File)
        found[flow.name] = sink.target
    assert len(found) == len(names)
    return found


async def back(files: Sequence[File], tables: Sequence[str], target: str) -> None:
    """Append each file to a table."""
    into = Database(target)
    flows = [
        file.rows().named(table).into(into.append(table))
        for file, table in zip(files, tables, strict=True)
    ]
    await Pipeline(f"back from {files[0].path}", *flows).run()


async def round_trip(
    cases: Sequence[Case], source: str, target: str, folder: Path, form: str
) -> None:
    for at in range(0, len(cases), TOGETHER):
        some = cases[at : at + TOGETHER]
        files = await into_files(source, [case.asked for case in some], folder, form)
        await back(list(files.values()), [case.table for case in some], target)


async def refusal_of(source: str, case: Case, folder: Path, form: str) -> str:
    with pytest.raises(EtlError) as refusal:
        await into_files(source, [case.asked], folder, form)
    error: BaseException = refusal.value
    if isinstance(error, PipelineFailedError):
        error = error.errors[0]
    assert isinstance(error, ConfigError | DataError)
    return str(error)


async def test_tables_of_postgres_come_back_from_files(
    postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    chosen = [case for case in POSTGRES if case.asked[:2] in {"t_", "k_", "s_"}]
    chosen = [case for case in chosen if case.asked not in LARGE]
    # What no column that has the type takes from a text.
    chosen = [case for case in chosen if case.asked not in {"t_interval_fields", "s_zero"}]
    source, target = postgres_database(), postgres_database()
    for url in (source, target):
        async with sql(url) as session:
            await session.execute(POSTGRES_TYPES)
            for case in chosen:
                await session.execute(case.sql)
    rows = {case.asked: (await read(source, case.table))[1] for case in chosen}
    for form, refused in REFUSED.items():
        folder = tmp_path / form
        async with sql(target) as session:
            tables = ", ".join(case.table for case in chosen)
            await session.execute(f"TRUNCATE {tables}")
        held = [case for case in chosen if case.asked not in refused]
        await round_trip(held, source, target, folder, form)
        for case in held:
            assert_same(
                f"{form}: {case.asked}", rows[case.asked], (await read(target, case.table))[1]
            )
        for case in chosen:
            if case.asked in refused:
                why = await refusal_of(source, case, folder, form)
                assert all(part in why for part in (case.asked, *refused[case.asked])), why


def assert_same(where: str, rows: Sequence[Any], found: Sequence[Any]) -> None:
    if rows != found:  # not by assert: the values may be large
        odd = [(str(a)[:99], str(b)[:99]) for a, b in zip(rows, found, strict=False) if a != b]
        pytest.fail(f"{where}: {len(rows)} rows, {len(found)} came back; {odd[:3]}")


SQLITE_REFUSED: Mapping[str, tuple[str, ...]] = {
    "a_decimal_text": ("'v' (DECIMAL(40,2))", "several kinds"),
    "a_json_number": ("'v' (JSON)", "several kinds"),
    "a_mixed": ("'v'", "several kinds"),
    "a_mixed_text": ("'v' (TEXT)", "several kinds"),
    "a_mixed_int": ("'v' (INTEGER)", "several kinds"),
    "b_strict_any": ("'a'", "several kinds"),
    "b_pk_mixed": ("'id'", "several kinds"),
    "a_uuid_blob": ("'v' (UUID)", "blobs"),
    "a_text_blob": ("'v' (TEXT)", "blobs"),
    "a_blob_text": ("'v' (BLOB)", "texts"),
    "b_strict": ("'a'", "texts"),
    "a_nul": ("'v'", "NUL"),
    "a_invalid": ("'v'", "UTF-8"),
    "b_pk_null": ("'id'", "NULL"),
    "b_empty_column": ("without a name",),
}
LEFT_OUT = {"b_view", "b_fts"}
LOOSE: Mapping[str, Mapping[str, Callable[[Any], Any]]] = {
    "csv.gz": {
        # A text that says true is true where a column is declared so; JSON tells the two apart.
        "a_bool_text": lambda cell: {"true": 1, "false": 0}.get(cell, cell),
    },
    "jsonl": {},
    "parquet": {
        # As moments: Parquet keeps no text of them.
        "a_datetime_t": lambda cell: moment("timestamp", cell),
        "a_datetime_z": lambda cell: moment("timestamptz", cell),
        "a_time": lambda cell: moment("time", cell),
        "a_bool_text": lambda cell: {"true": 1, "false": 0}.get(cell, cell),
    },
}


def without_types(sqlite_url: str, table: str) -> set[int]:
    """The columns without a declared type."""
    connection = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    try:
        columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
    finally:
        connection.close()
    return {place for place, column in enumerate(columns) if not column[2]}


@pytest.mark.parametrize("form", LOOSE)
async def test_a_table_of_sqlite_comes_back_from_a_file(form: str, tmp_path: Path) -> None:
    chosen = [case for case in SQLITE if case.asked not in {*LARGE, *LEFT_OUT}]
    urls = [f"sqlite:///{tmp_path / name}.db" for name in ("source", "target")]
    for url in urls:
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        for case in chosen:
            connection.executescript(case.sql)
            if url is urls[1]:
                connection.execute(f"DELETE FROM {case.table}")
        connection.commit()
        connection.close()
    source, target = urls
    held = [case for case in chosen if case.asked not in SQLITE_REFUSED]
    await round_trip(held, source, target, tmp_path, form)
    for case in held:
        untyped = without_types(source, case.table) if form == "csv.gz" else set[int]()
        loose = LOOSE[form].get(case.asked)

        def seen(place: int, cell: tuple[str, Any]) -> Any:
            kind, value = cell
            if value is None:
                return None
            if place in untyped:  # noqa: B023  called within the turn of the loop
                return str(value)  # a text of CSV stays one in a column without a type
            if loose is not None and kind == "str":  # noqa: B023
                return loose(value)  # noqa: B023
            return cell if loose is None else value  # noqa: B023

        rows, found = (
            sorted((tuple(seen(*one) for one in enumerate(row)) for row in rows), key=repr)
            for rows in (read_sqlite(source, case.table), read_sqlite(target, case.table))
        )
        assert rows == found, case.asked
    for case in chosen:
        if case.asked in SQLITE_REFUSED:
            why = await refusal_of(source, case, tmp_path, form)
            assert all(part in why for part in SQLITE_REFUSED[case.asked]), (case.asked, why)
