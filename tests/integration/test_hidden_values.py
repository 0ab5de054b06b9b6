"""What a database or a function says of a row stands in no message, unless it is asked for."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from etl import Database, DataError, DeadLetter, Pipeline, PipelineFailedError, Row
from tests.integration.forked_etl import ForkedEtl, forked_etl
from tests.integration.postgres_kit import run_sql, sql

VALUE = "xyz-4711-hidden"

FUNCTIONS = """
CREATE FUNCTION checked() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'the name % is not wanted', NEW.name USING ERRCODE = TG_ARGV[0]; END $$;
CREATE FUNCTION cast_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM NEW.name::integer; RETURN NEW; END $$;
"""

# What makes the table refuse a row -> what the message says all the same.
REFUSALS = {
    "CREATE TABLE t (id int PRIMARY KEY, name text UNIQUE); INSERT INTO t VALUES (9, '{value}')": (
        'duplicate key value violates unique constraint "t_name_key"'
    ),
    "CREATE TABLE t (id int PRIMARY KEY, name text CONSTRAINT short CHECK (length(name) < 5))": (
        'violates check constraint "short"'
    ),
    "CREATE TABLE o (name text PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, name text"
    " REFERENCES o)": 'violates foreign key constraint "t_name_fkey"',
    "CREATE TABLE t (id int PRIMARY KEY, name text, EXCLUDE (name WITH =));"
    " INSERT INTO t VALUES (9, '{value}')": "violates exclusion constraint",
    "CREATE TABLE t (id int NOT NULL, name text) PARTITION BY LIST (name)": (
        'no partition of relation "t" found for row'
    ),
    "CREATE DOMAIN d AS text CHECK (value = ''); CREATE TABLE t (id int PRIMARY KEY, name d)": (
        'value for domain d violates check constraint "d_check"'
    ),
    "CREATE TABLE t (id int PRIMARY KEY, name text); CREATE TRIGGER c BEFORE INSERT ON t"
    " FOR EACH ROW EXECUTE FUNCTION checked('P0001')": (
        "PL/pgSQL function checked() line 2 at RAISE raised an error (SQLSTATE P0001)"
    ),
    "CREATE TABLE t (id int PRIMARY KEY, name text); CREATE TRIGGER c BEFORE INSERT ON t"
    " FOR EACH ROW EXECUTE FUNCTION checked('23514')": "at RAISE raised an error (SQLSTATE 23514)",
    "CREATE TABLE t (id int PRIMARY KEY, name text); CREATE TRIGGER c BEFORE INSERT ON t"
    " FOR EACH ROW EXECUTE FUNCTION cast_it()": "invalid input syntax for type integer",
}


async def _fails(pipeline: Pipeline) -> PipelineFailedError:
    with pytest.raises(PipelineFailedError) as failed:
        await pipeline.run()
    return failed.value


@pytest.mark.parametrize("table", list(REFUSALS))
async def test_a_table_s_refusal_names_what_was_broken_and_no_value(
    table: str, postgres_database: Callable[[], str]
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, f"CREATE TABLE t (id int PRIMARY KEY, name text);"
                          f" INSERT INTO t VALUES (1, '{VALUE}')")  # fmt: skip
    await run_sql(target, FUNCTIONS + table.format(value=VALUE))
    rows = Database(source).table("t").map(lambda row: row)
    pipeline = Pipeline("p", rows.into(Database(target).append("t")))

    failed = await _fails(pipeline)
    assert REFUSALS[table] in str(failed)
    assert VALUE not in str(failed)
    error = failed.errors[0]
    assert isinstance(error, DataError)
    assert VALUE not in error.reason
    # Of a domain the server itself does not tell it.
    assert VALUE in (error.detail or "") or "domain" in error.reason

    report = await pipeline.run(on_error=DeadLetter())
    assert report.rows_rejected == 1
    async with sql(target) as connection:
        (kept,) = await connection.fetch("SELECT reason, detail FROM etl_reject")
    assert VALUE not in kept["reason"]
    assert kept["detail"] == error.detail


@pytest.mark.parametrize("message", ["sprache", "english"])
async def test_a_server_that_speaks_another_language_does_not_tell_values(message: str) -> None:
    import asyncpg

    from etl.databases.postgres.translate import safe_message

    error = asyncpg.InvalidTextRepresentationError()
    texts = {
        "sprache": f"ungültige Eingabesyntax für Typ integer: »{VALUE}«",
        "english": f'value "{VALUE}" is out of range for type integer',
    }
    vars(error)["message"] = texts[message]
    vars(error)["sqlstate"] = "22P02"
    assert VALUE not in safe_message(error)
    assert "integer" in safe_message(error)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE)", "UNIQUE constraint failed"),
        ("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT CHECK (name = ''))", "CHECK"),
        ("CREATE TABLE t (id INTEGER PRIMARY KEY, name INTEGER) STRICT", "name"),
        (
            (
                "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT); "
                f"CREATE TRIGGER c BEFORE INSERT ON t BEGIN SELECT RAISE(ABORT, 'not {VALUE}'); END"
            ),
            "a trigger raised an error",
        ),
    ],
)
async def test_sqlite_s_refusal_holds_no_value(table: str, says: str, tmp_path: Path) -> None:
    for name, script in (
        ("source", "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)"),
        ("target", table),
    ):
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as connection:
            connection.executescript(script)
            if name == "source":
                connection.executemany("INSERT INTO t VALUES (?, ?)", [(1, VALUE), (2, VALUE)])
                connection.commit()
    source, target = (f"sqlite:///{tmp_path / name}.db" for name in ("source", "target"))
    rows = Database(source).table("t").map(lambda row: row)
    failed = await _fails(Pipeline("p", rows.into(Database(target).append("t"))))
    assert says in str(failed)
    assert VALUE not in str(failed)


def _says(row: Row) -> Row:
    raise ValueError(f"cannot use {row['name']}")


def _decides(row: Row) -> Row:
    raise DataError("the name is not one of ours", column="name")


async def test_what_a_function_says_is_kept_beside_the_message(sqlite_url: str) -> None:
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("INSERT INTO t VALUES (1, ?)", [VALUE])
        connection.commit()
    table, sink = Database(sqlite_url).table("t"), Database(sqlite_url).append("u")
    failed = await _fails(Pipeline("p", table.map(_says).into(sink)))
    assert "_says failed on row 1 of a batch: ValueError (test_hidden_values.py:" in str(failed)
    assert VALUE not in str(failed)
    assert failed.detail == f"cannot use {VALUE}"
    # An error of the project's own is written for people: it is shown.
    failed = await _fails(Pipeline("q", table.map(_decides).into(sink)))
    assert "the name is not one of ours" in str(failed)


PIPELINE = """
from etl import Database, Pipeline

def says(row):
    assert row["name"] == "", f"unwanted {row['name']}"
    return row

rows = Database("env:SOURCE").table("t")
refused = Pipeline("refused", rows.into(Database("env:TARGET").append("t")))
failing = Pipeline("failing", rows.map(says).into(Database("sqlite:///x.db").append("t")))
"""


@pytest.fixture
def command(tmp_path: Path, postgres_database: Callable[[], str]) -> Iterator[ForkedEtl]:
    source, target = postgres_database(), postgres_database()
    asyncio.run(run_sql(source, f"CREATE TABLE t (id int PRIMARY KEY, name text);"
                                f" INSERT INTO t VALUES (1, '{VALUE}')"))  # fmt: skip
    asyncio.run(run_sql(target, "CREATE TABLE t (id int PRIMARY KEY, name text UNIQUE);"
                                f" INSERT INTO t VALUES (9, '{VALUE}')"))  # fmt: skip
    (tmp_path / "flows.py").write_text(PIPELINE)
    with forked_etl(tmp_path, {"SOURCE": source, "TARGET": target}) as etl:
        yield etl


def test_the_command_shows_values_where_it_is_asked_to(command: ForkedEtl) -> None:
    for name, says in (("refused", "Key (name)="), ("failing", "unwanted ")):
        arguments = ["run", f"flows.py:{name}", "--verbose"]
        for more in ([], ["--traceback"], ["--json", "--traceback"]):
            code, output = command(*arguments, *more)
            assert code == 1, output
            assert VALUE not in output
            assert "--show-values shows what it says itself" in output
        code, output = command(*arguments, "--show-values")
        assert code == 1
        assert f"detail: {says}" in output
        assert VALUE in output
