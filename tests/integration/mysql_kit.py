"""What the MySQL tests share: a corpus of awkward tables, and databases compared value by value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from etl.cli.copy import CopyOptions, plan_copy
from etl.databases.database import Database
from tests.integration.postgres_kit import sql
from tests.integration.sqlite_kit import fetch
from tests.mysql_server import MySQLServer

Rows = list[tuple[Any, ...]]

CORPUS: Sequence[str] = (
    """CREATE TABLE ints (id bigint unsigned AUTO_INCREMENT PRIMARY KEY, a tinyint,
    au tinyint unsigned, b smallint, bu smallint unsigned, c mediumint, cu mediumint unsigned,
    d int, du int unsigned, e bigint, flag tinyint(1), many tinyint(1), y year, b1 bit,
    b9 bit(9))""",
    """INSERT INTO ints VALUES (1, -128, 255, -32768, 65535, -8388608, 16777215, -2147483648,
    4294967295, -9223372036854775808, 1, 127, 1901, 1, 511), (2, 127, 0, 32767, 0, 8388607, 0,
    2147483647, 0, 9223372036854775807, 0, -128, 2155, 0, 0), (3, NULL, NULL, NULL, NULL, NULL,
    NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL)""",
    "CREATE TABLE bigs (id bigint unsigned PRIMARY KEY, v int, b bit(64))",
    """INSERT INTO bigs VALUES (1, 1, 0), (9223372036854775807, 2, 1), (9223372036854775808, 3,
    9223372036854775808), (18446744073709551615, 4, 18446744073709551615)""",
    """CREATE TABLE nums (id decimal(20,3) PRIMARY KEY, d decimal(65,30),
    e decimal(10,2) NOT NULL DEFAULT 1.50, f float, g double)""",
    """INSERT INTO nums VALUES (-1.5,
    '12345678901234567890123456789012345.123456789012345678901234567890',
    -0.01, 1.17549e-38, 1.7976931348623157e308), (12345678901234567.001, 0, 99999999.99, 16777217,
    -2.2250738585072014e-308), (12345678901234567.002, NULL, 0, NULL, NULL), (4, -1, 1, 0.1, 0.1),
    (5, 1, 1, 3.402823466e38, '-0')""",
    """CREATE TABLE texts (id varchar(30) PRIMARY KEY, c char(5), v varchar(200) UNIQUE, t text,
    l longtext, en enum('a','B','1',''), st set('x','y','z'), lat varchar(50) CHARACTER SET latin1,
    u3 varchar(20) CHARACTER SET utf8mb3, bn varchar(20) COLLATE utf8mb4_bin)""",
    r"""INSERT INTO texts VALUES ('a', 'ab', 'x  ', 't\t\n\r\\\\N"''%s :x \\Z', REPEAT('é', 9000),
    '1', 'x,z', 'äöü', 'ß', 'A'), ('B', '', '', '', '', 'a', '', '', '', ''),
    ('c2', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('Z😀', 'é', '😀', '😀', '😀', 'B', 'y', '€', 'x', 'a ')""",
    """CREATE TABLE bytes_ (id binary(2) PRIMARY KEY, b binary(4), v varbinary(20),
    bl mediumblob)""",
    """INSERT INTO bytes_ VALUES (x'00ff', 'a', '', REPEAT(x'00ff275c', 400000)),
    (x'0100', NULL, NULL, NULL), ('ab', 'abcd', x'00', x'')""",
    """CREATE TABLE times (id datetime(3) PRIMARY KEY, d date, t time(6), dt datetime,
    dt6 datetime(6), ts timestamp NULL, ts6 timestamp(6) NULL)""",
    """INSERT INTO times VALUES ('2020-01-01 00:00:00.123', '0001-01-01', '23:59:59.999999',
    '9999-12-31 23:59:59', '1000-01-01 00:00:00.000001', '2038-01-19 03:14:07',
    '1970-01-01 00:00:01.000001'),
    ('2020-01-01 00:00:00.124', NULL, NULL, NULL, NULL, NULL, NULL)""",
    "CREATE TABLE stamped (id timestamp(6) PRIMARY KEY, n int)",
    "INSERT INTO stamped VALUES ('2020-03-29 02:30:00.5', 1), ('2020-10-25 02:30:00', 2)",
    "CREATE TABLE docs (id int PRIMARY KEY, j json, k json)",
    r"""INSERT INTO docs VALUES (1, '{"b": 1.10, "a": [1, "x\\u00e9", null]}',
    '12345678901234567890.5'),
    (2, NULL, '"x"')""",
    """CREATE TABLE parent (id int AUTO_INCREMENT PRIMARY KEY, code varchar(10) NOT NULL UNIQUE,
    n int DEFAULT 7, KEY by_n (n)) COMMENT 'it''s a parent'""",
    "INSERT INTO parent VALUES (5, 'x', 1), (9, 'y', 2)",
    """CREATE TABLE child (a int, b int, parent_id int, code varchar(10), PRIMARY KEY (a, b),
    KEY by_n (parent_id), CONSTRAINT fk1 FOREIGN KEY (parent_id) REFERENCES parent (id)
    ON DELETE CASCADE, CONSTRAINT fk2 FOREIGN KEY (code) REFERENCES parent (code))""",
    "INSERT INTO child VALUES (1, 1, 5, 'x'), (1, 2, 9, 'y'), (2, 1, NULL, NULL)",
    "CREATE TABLE nokey (a int, b varchar(10))",
    "INSERT INTO nokey VALUES (1, 'x'), (1, 'x'), (NULL, NULL)",
    "CREATE TABLE empty_ (id int PRIMARY KEY, t text)",
    """CREATE TABLE `sel``ect "x" %s :y` (`or``der` int PRIMARY KEY, `%s` int, `:z` varchar(5),
    `"q"` int, `a\\b` int)""",
    """INSERT INTO `sel``ect "x" %s :y` VALUES (1, 2, 'a', 3, 4)""",
    """CREATE TABLE gen (id int PRIMARY KEY, a int, b int AS (a * 2) STORED,
    c int AS (a + 1) VIRTUAL)""",
    "INSERT INTO gen (id, a) VALUES (1, 5)",
    "CREATE TABLE enumkey (k enum('z','a','m'), n int, PRIMARY KEY (k, n))",
    "INSERT INTO enumkey VALUES ('z', 1), ('a', 1), ('m', 2), ('z', 2)",
    r"""CREATE TABLE filled (id int(6) zerofill PRIMARY KEY, d decimal(8,2) unsigned zerofill,
    e enum('b\\s','it''s','n\nl'))""",
    r"INSERT INTO filled VALUES (7, 1.5, 'b\\s'), (1234567, NULL, 'n\nl'), (8, 0, 'it''s')",
    "CREATE TABLE shapes (id int PRIMARY KEY, g geometry)",
    "INSERT INTO shapes VALUES (1, ST_GeomFromText('POINT(1 2)')), (2, NULL)",
)

FAMILY = [one for one in CORPUS if any(f" {name} (" in one or f" {name} VALUES" in one
          for name in ("parent", "child"))]  # fmt: skip
"""Two tables, one of which names the other."""

ONLY_MYSQL: Sequence[str] = (
    """CREATE TABLE zero (id int PRIMARY KEY, d date, dt datetime(6), t time, n text,
    ts timestamp NULL)""",
    r"""INSERT INTO zero VALUES (0, '0000-00-00', '0000-00-00 00:00:00', '-838:59:59', 'a\0b', 0),
    (1, '2020-02-31', '2020-00-00 00:00:00', '100:00:00', NULL, NULL)""",
)

TABLES = (
    "ints", "bigs", "nums", "texts", "bytes_", "times", "stamped", "docs", "parent", "child",
    "nokey", "empty_", 'sel`ect "x" %s :y', "gen", "enumkey", "filled", "shapes",
)  # fmt: skip


def quoted(table: str) -> str:
    return '"' + table.replace('"', '""') + '"' if '"' in table else table


POSTGRES = """
CREATE TABLE kinds (id bigint PRIMARY KEY, b boolean, s smallint, i int, f4 real, f8 float8,
    n numeric, n2 numeric(12,3), t text, v varchar(20), c char(4), y bytea, d date, ti time,
    ts timestamp, tz timestamptz, iv interval, u uuid, j json, jb jsonb, a int[], e inet);
INSERT INTO kinds VALUES
    (1, true, -32768, 2147483647, 0.1, 0.1, 12345678901234567890.5, 1.500,
     E'a\\tb\\nc\\\\d ''" %s :x 😀', 'x  ', 'ab', '\\x00ff275c', '0001-01-01',
     '24:00:00', '9999-12-31 23:59:59.999999',
     '2020-06-01 12:00:00.25+02', '1 year 2 mons 3 days', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11',
     '{"b" : 1.10}', '{"b": 1}', '{1,2,NULL}', '10.0.0.1'),
    (2, false, 0, 0, 0, 0.0, 0, 0, '', '', '', '', '2020-02-29', '00:00',
     '1000-01-01', '1970-01-01 00:00:01+00', '0', '00000000-0000-0000-0000-000000000000', 'null',
     '[]', '{}', '::1'),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL);
UPDATE kinds SET f4 = 3.4028235e38 WHERE id = 2;
CREATE TABLE words (w text PRIMARY KEY, n int);
INSERT INTO words VALUES ('a', 1), ('A', 2), ('a ', 3), ('ä', 4), ('', 5);
CREATE TABLE lines (id serial PRIMARY KEY, w text REFERENCES words, k int UNIQUE, q int DEFAULT 5);
INSERT INTO lines (w, k) VALUES ('a ', 1), (NULL, 2);
"""

SQL_MODE = "SET sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES'"


def fill(server: MySQLServer, url: str, *statements: str) -> None:
    """Run statements in a database."""
    server.execute(SQL_MODE, *statements, database=name_of(url))


def name_of(url: str) -> str:
    return urlsplit(url).path[1:]


def rows_of(server: MySQLServer, url: str, query: str) -> Rows:
    return server.query(query, database=name_of(url))


async def copy(source: str, target: str, **options: Any) -> Sequence[str]:
    """``etl copy``; what it said of the tables."""
    planned = await plan_copy(Database(source), Database(target), CopyOptions(**options))
    report = await planned.pipeline.run()
    return [note for flow in report.flows for note in flow.notes]


# -- one form for the values of every database --------------------------------------------------

_TYPES = (
    "SELECT column_name, data_type FROM information_schema.columns"
    " WHERE table_schema = DATABASE() AND table_name = '{}' ORDER BY ordinal_position"
)


def of_mysql(server: MySQLServer, url: str, table: str) -> Rows:
    """The rows of a table, sorted; numbers as decimals, moments as texts, bytes as bytes."""
    text = table.replace("'", "''").replace("\\", "\\\\")
    types = rows_of(server, url, _TYPES.format(text))
    wanted = ", ".join(_read(str(name), str(kind)) for name, kind in types)
    quoted = table.replace("`", "``")
    rows = rows_of(server, url, f"SELECT {wanted} FROM `{quoted}`")
    return _sorted(rows)


def _read(name: str, kind: str) -> str:
    quoted = "`" + name.replace("`", "``") + "`"
    if kind in {"date", "time", "datetime", "timestamp"}:
        return f"CAST({quoted} AS CHAR)"
    if kind == "float":
        return f"{quoted} * 1e0"
    return f"{quoted} + 0" if kind == "bit" else quoted


def of_sqlite(url: str, table: str) -> Rows:
    quoted = table.replace('"', '""')
    return _sorted(fetch(url, f'SELECT * FROM "{quoted}"'))


async def of_postgres(url: str, table: str) -> Rows:
    quoted = table.replace('"', '""')
    async with sql(url) as connection:
        for kind in ("date", "timestamp", "timestamptz", "time", "json", "jsonb", "uuid"):
            await connection.set_type_codec(
                kind, schema="pg_catalog", encoder=str, decoder=str, format="text"
            )
        await connection.execute("SET timezone = 'UTC'")
        rows = await connection.fetch(f'SELECT * FROM "{quoted}"')
    return _sorted([tuple(row.values()) for row in rows])


def _sorted(rows: Sequence[Sequence[Any]]) -> Rows:
    return sorted((tuple(map(common, row)) for row in rows), key=repr)


def common(value: Any) -> Any:
    """A value in the one form."""
    if isinstance(value, bool | int):
        return Decimal(int(value))
    if isinstance(value, float):
        return Decimal(repr(value)).normalize() + 0
    if isinstance(value, Decimal):
        return value.normalize() + 0 if value else Decimal(0)
    if isinstance(value, str):
        text = value
        if len(text) >= 19 and text[4:5] == text[7:8] == "-" and text[13:14] == ":":
            text = text.removesuffix("+00:00").removesuffix("+00")
        if ":" in text and text[:1].isdigit() and "." in text and text[-1].isdigit():
            text = text.rstrip("0").rstrip(".")
        try:  # where exact numbers are kept as texts
            return Decimal(text).normalize() + 0 if text[-1:].isdigit() else text
        except ArithmeticError:
            return text
    return value


def same(one: Rows, other: Rows) -> Mapping[str, Any] | None:
    """None, or the first rows that differ."""
    if one == other:
        return None
    left = [row for row in one if row not in other]
    right = [row for row in other if row not in one]
    return {"missing": json.dumps(left[:2], default=str)[:400], "extra": str(right[:2])[:400]}
