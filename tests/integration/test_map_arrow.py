"""Functions of Arrow between databases and files: exact values, refusals, tokens, bad rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from etl import Database, DeadLetter, File, Limits, Pipeline, Row
from etl.errors import PipelineFailedError, SchemaMismatchError, StageError
from tests.integration.postgres_kit import run_sql, sql, texts, value

TYPES = r"""
CREATE TYPE mood AS ENUM ('ok', 'it''s "odd"');
CREATE DOMAIN short AS varchar(5) CHECK (value <> 'never');
CREATE TABLE odd (
    id bigint PRIMARY KEY, b boolean, i2 smallint, i4 integer, f4 real, f8 double precision,
    n numeric, n2 numeric(15, 2), n9 numeric(60, 20), n0 numeric(3, -2), t text, v varchar(20),
    c char(4), by bytea, d date, ti time, tz timetz, ts timestamp, tstz timestamptz, iv interval,
    u uuid, j json, jb jsonb, m mood, s short, a int[], a2 text[], r int4range, mr nummultirange,
    ip inet, mac macaddr, bits bit(3), vb varbit, p point, tsv tsvector, q tsquery,
    o oid, nm name, "Odd ""Name %s" text
);
"""
ROWS = r"""
INSERT INTO odd (id) VALUES (0);
INSERT INTO odd VALUES
(1, true, -32768, -2147483648, 1e-45, 5e-324, 'NaN', -0.01, -1e-20, 12300,
 E'tab\t nl\n cr\r bs\\ \\N \\. ü😀 \b\f\v \\\\n', '', 'ab', '\x5c780a', '0001-01-01',
 '23:59:59.999999', '23:59:59.999999-15:59', '9999-12-31 23:59:59.999999',
 '0001-01-01 00:00:00+00', '1 year 2 mons -3 days 04:05:06.789',
 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"b": 1,  "a": 1e400, "a": 2}', '{"a": 1.10}',
 'it''s "odd"', 'x', '[2:3]={1,NULL}', ARRAY['a,b', NULL, 'NULL', '"', '{}', E'\\'], '[1,10)',
 '{[1.5,2),(3,]}', '10.1.2.3/8', '08:00:2b:01:02:03', '101', '1', '(1.5,-2)',
 $$'a':1A 'b c':2$$, $$'a' & !'b'$$, 4294967295, 'pg name', 'x'),
(2, false, 32767, 2147483647, 'NaN', '-Infinity', '123456789012345678901234567890.0000000001',
 9999999999999.99, 1234567890123456789012345678901234567890.12345678901234567890, 0, E'\ufeff',
 'it "quotes"', 'ä', '', '2024-02-29', '00:00', '00:00+00', '2024-02-29 12:00',
 '2024-02-29 12:00:00.5+02', '-1 microsecond', '00000000-0000-0000-0000-000000000000', 'null',
 'null', 'ok', '', '{}', '{{a,b},{c,d}}', 'empty', '{}', '::1', '00:00:00:00:00:00', '000', '',
 '(NaN,Infinity)', '', '', 0, '', E'\\N');
"""


@pytest.fixture
def two(postgres_database: Callable[[], str]) -> tuple[str, str]:
    """A source and a target."""
    return postgres_database(), postgres_database()


def identity(table: Any) -> Any:
    return table


def copied(table: Any) -> Any:
    """The same values in new arrays and fields, without what etl noted beside them."""
    return pa.table([column.combine_chunks() for column in table.columns], table.column_names)


@pytest.mark.parametrize("function", [identity, copied])
async def test_every_value_that_arrow_holds_comes_back_as_it_was(
    two: tuple[str, str], function: Callable[[Any], Any]
) -> None:
    source, target = two
    await run_sql(source, TYPES + ROWS)
    await run_sql(target, TYPES)

    flow = Database(source).table("odd").map_arrow(function).into(Database(target).append("odd"))
    await Pipeline("p", flow).run()

    wanted = await texts(source, "SELECT * FROM odd ORDER BY id")
    assert await texts(target, "SELECT * FROM odd ORDER BY id") == wanted
