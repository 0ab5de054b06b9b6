"""``etl copy`` from and into MySQL: each value equal, or refused by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from etl import Database, File, Pipeline
from etl.databases.generic.survey import list_tables
from etl.databases.url import parse_url
from etl.errors import DataError, PipelineFailedError, SchemaMismatchError, TransientError
from tests.integration.mysql_kit import (
    CORPUS,
    FAMILY,
    ONLY_MYSQL,
    POSTGRES,
    TABLES,
    copy,
    fill,
    name_of,
    of_mysql,
    of_postgres,
    of_sqlite,
    rows_of,
    same,
)
from tests.integration.postgres_kit import run_sql
from tests.integration.sqlite_kit import script
from tests.mysql_server import MySQLServer


async def test_every_table_is_copied_to_mysql_exactly(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    source, target = mysql_database(), mysql_database()
    fill(mysql_server, source, *CORPUS, *ONLY_MYSQL)

    await copy(source, target)

    for table in (*TABLES, "zero"):
        one, other = of_mysql(mysql_server, source, table), of_mysql(mysql_server, target, table)
        assert not same(one, other), table
    made = str(rows_of(mysql_server, target, "SHOW CREATE TABLE child")[0][1])
    assert "CONSTRAINT `fk1` FOREIGN KEY (`parent_id`) REFERENCES `parent` (`id`)" in made
    assert "ON DELETE CASCADE" in made
    made = str(rows_of(mysql_server, target, "SHOW CREATE TABLE parent")[0][1])
    assert "UNIQUE KEY `code` (`code`)" in made
    assert "KEY `by_n` (`n`)" in made
    assert "AUTO_INCREMENT" in made


async def test_every_table_is_copied_to_sqlite_exactly(
    mysql_server: MySQLServer, mysql_database: Callable[[], str], sqlite_url: str
) -> None:
    source = mysql_database()
    fill(mysql_server, source, *CORPUS, *ONLY_MYSQL)

    await copy(source, sqlite_url)

    for table in (*TABLES, "zero"):
        assert not same(of_mysql(mysql_server, source, table), of_sqlite(sqlite_url, table)), table


async def test_every_table_is_copied_to_postgresql_exactly(
    mysql_server: MySQLServer, mysql_database: Callable[[], str], postgres_url: str
) -> None:
    source = mysql_database()
    fill(mysql_server, source, *CORPUS)

    await copy(source, postgres_url)

    for table in TABLES:
        other = await of_postgres(postgres_url, table)
        assert not same(of_mysql(mysql_server, source, table), other), table


@pytest.mark.parametrize(
    ("column", "value"),
    [("d date", "'0000-00-00'"), ("d datetime", "'2020-02-31 00:00:00'"), ("d time", "'838:59:59'"),
     ("d text", "'a\\0b'")],
)  # fmt: skip
async def test_what_postgresql_has_not_is_refused_by_name(
    mysql_server: MySQLServer,
    mysql_database: Callable[[], str],
    postgres_url: str,
    column: str,
    value: str,
) -> None:
    source = mysql_database()
    fill(
        mysql_server,
        source,
        f"CREATE TABLE odd (id int PRIMARY KEY, {column})",
        f"INSERT INTO odd VALUES (1, {value})",
    )

    with pytest.raises((PipelineFailedError, DataError), match=r"odd.*|'d'") as caught:
        await copy(source, postgres_url)

    assert "odd" in str(caught.value)
    assert "'d'" in str(caught.value) or "date" in str(caught.value)


async def test_postgresql_is_copied_to_mysql_exactly(
    mysql_server: MySQLServer, mysql_url: str, postgres_url: str
) -> None:
    await run_sql(postgres_url, POSTGRES)

    await copy(postgres_url, mysql_url)

    rows = rows_of(
        mysql_server,
        mysql_url,
        "SELECT id, b, s, i, f4 * 1e0, f8, CAST(n AS CHAR), n2, t, v, c, y, CAST(d AS CHAR),"
        " CAST(ti AS CHAR), CAST(ts AS CHAR), CAST(tz AS CHAR), iv, u, j, jb, a, e FROM kinds"
        " ORDER BY id",
    )
    assert rows[0][:7] == (1, 1, -32768, 2147483647, 0.10000000149011612, 0.1,
                           "12345678901234567890.500000000000000000000000000000")  # fmt: skip
    assert str(rows[0][7]) == "1.500"
    assert rows[0][8:12] == ("a\tb\nc\\d '\" %s :x 😀", "x  ", "ab  ", b"\x00\xff'\\")
    assert rows[0][12:16] == ("0001-01-01", "24:00:00.000000", "9999-12-31 23:59:59.999999",
                              "2020-06-01 10:00:00.250000")  # fmt: skip
    assert rows[0][16:] == ("1 year 2 mons 3 days", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
                            '{"b" : 1.10}', '{"b": 1}', "{1,2,NULL}", "10.0.0.1")  # fmt: skip
    assert rows[2] == (3, *[None] * 21)
    words = rows_of(mysql_server, mysql_url, "SELECT w, n FROM words ORDER BY n")
    assert words == [("a", 1), ("A", 2), ("a ", 3), ("ä", 4), ("", 5)]
    assert rows_of(mysql_server, mysql_url, "SELECT * FROM `lines` ORDER BY id") == [
        (1, "a ", 1, 5), (2, None, 2, 5)
    ]  # fmt: skip
    made = str(rows_of(mysql_server, mysql_url, "SHOW CREATE TABLE `lines`")[0][1])
    assert "FOREIGN KEY (`w`) REFERENCES `words` (`w`)" in made
    assert "UNIQUE KEY" in made
    assert "DEFAULT 5" in made


@pytest.mark.parametrize(
    ("declared", "value", "why"),
    [
        ("timestamptz", "'2200-01-01 00:00+00'", "incorrect value for column 'v'"),
        ("timestamp", "'infinity'", "'v'"),
        ("date", "'0044-03-15 BC'", "'v'"),
        ("float8", "'NaN'", "NaN, which MySQL has not"),
        ("float8", "'-0'", "negative zero"),
        ("numeric", "'NaN'", "not finite"),
        ("numeric", "1e-31", "30 digits"),
        ("numeric", "1e40", "out of range for column 'v'"),
    ],
)
async def test_what_mysql_has_not_is_refused_by_name(
    mysql_server: MySQLServer,
    mysql_url: str,
    postgres_url: str,
    declared: str,
    value: str,
    why: str,
) -> None:
    await run_sql(
        postgres_url,
        f"CREATE TABLE odd (id int PRIMARY KEY, v {declared}); INSERT INTO odd VALUES (1, {value})",
    )

    with pytest.raises(PipelineFailedError) as caught:
        await copy(postgres_url, mysql_url)

    assert "sink 'odd'" in str(caught.value)
    assert why in str(caught.value)


async def test_sqlite_is_copied_to_mysql_exactly(
    mysql_server: MySQLServer, mysql_url: str, sqlite_url: str
) -> None:
    script(
        sqlite_url,
        """CREATE TABLE t (id INTEGER PRIMARY KEY, n NUMERIC, r REAL, x TEXT, b BLOB, d DATE,
            ok BOOLEAN, big INTEGER, price DECIMAL(10,2));
        INSERT INTO t VALUES (1, 1.5, 0.1, 'a''\\ ', x'00ff', '2020-01-31', 1,
            9223372036854775807, '1.10'), (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
        CREATE TABLE k (w TEXT PRIMARY KEY NOT NULL) WITHOUT ROWID;
        INSERT INTO k VALUES ('a'), ('A'), ('a ');
        CREATE TABLE other (id INTEGER PRIMARY KEY, t INTEGER REFERENCES t, w TEXT REFERENCES k);
        INSERT INTO other VALUES (1, 1, 'a ');""",
    )

    await copy(sqlite_url, mysql_url)

    for table in ("t", "k", "other"):
        assert not same(of_sqlite(sqlite_url, table), of_mysql(mysql_server, mysql_url, table)), (
            table
        )
    made = str(rows_of(mysql_server, mysql_url, "SHOW CREATE TABLE other")[0][1])
    assert made.count("FOREIGN KEY") == 2


async def test_a_second_copy_replaces_every_table(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    source, target = mysql_database(), mysql_database()
    fill(mysql_server, source, *FAMILY)
    await copy(source, target)
    fill(
        mysql_server,
        source,
        "DELETE FROM child WHERE a = 2",
        "INSERT INTO parent VALUES (10, 'new', 1)",
        "INSERT INTO child VALUES (7, 7, 10, 'new')",
    )

    await copy(source, target)

    for table in ("parent", "child"):
        one, other = of_mysql(mysql_server, source, table), of_mysql(mysql_server, target, table)
        assert not same(one, other), table


async def test_what_the_copy_of_a_table_has_not_is_told(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    source, target = mysql_database(), mysql_database()
    fill(
        mysql_server,
        source,
        "CREATE SEQUENCE numbers",
        "CREATE TABLE t (w varchar(9), n bigint DEFAULT NEXTVAL(numbers), id int AUTO_INCREMENT,"
        " v varchar(20) DEFAULT 'nextval(x)', KEY (id), PRIMARY KEY (w(3)))",
        "INSERT INTO t (w) VALUES ('a')",
    )

    notes = "\n".join(await copy(source, target))

    assert "the default of 'n': nextval(" in notes
    assert "that 'id' is numbered" in notes
    assert "the index 't_PRIMARY' (a prefix" in notes
    made = str(rows_of(mysql_server, target, "SHOW CREATE TABLE t")[0][1])
    assert "DEFAULT 'nextval(x)'" in made
    assert name_of(source) not in made


async def test_a_replaced_table_must_leave_no_orphans(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    source, target = mysql_database(), mysql_database()
    fill(mysql_server, source, *FAMILY)
    await copy(source, target)
    fill(mysql_server, source, "DELETE FROM child", "DELETE FROM parent WHERE id = 9")

    with pytest.raises(PipelineFailedError, match="would leave 1 rows of 'child'"):
        await copy(source, target, tables=("parent",))

    assert len(of_mysql(mysql_server, target, "parent")) == 2
    assert len(of_mysql(mysql_server, target, "child")) == 3


async def test_an_engine_that_cannot_roll_back_is_refused(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    source, target = mysql_database(), mysql_database()
    fill(mysql_server, source, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    fill(mysql_server, target, "CREATE TABLE t (id int PRIMARY KEY) ENGINE=MyISAM")

    with pytest.raises((PipelineFailedError, SchemaMismatchError), match="MyISAM, which cannot"):
        await copy(source, target, mode="append")


@pytest.mark.parametrize(
    ("table", "columns", "why"),
    [
        ('"odd "', "id int PRIMARY KEY", "the name of the table ends in a space"),
        ('"odd😀"', "id int PRIMARY KEY", "the name of the table has a character beyond U+FFFF"),
        ("odd", 'id int PRIMARY KEY, "v " int', "column 'v ' ends in a space"),
        ("odd", 'id int PRIMARY KEY, "v😀" int', "column 'v😀' has a character beyond U+FFFF"),
        ("odd", 'id int PRIMARY KEY, "V" int, v int', "column 'v' differs from 'V' in upper"),
        ("odd", "id int PRIMARY KEY, etl_row int", "column 'etl_row' is that of etl's own"),
        (
            "odd",
            "id int PRIMARY KEY, " + ", ".join(f"c{n} int" for n in range(1_016)),
            "1,017 columns, and a table of MySQL holds at most 1,016",
        ),
        (
            "odd",
            "id int PRIMARY KEY, " + ", ".join(f"c{n} varchar(255)" for n in range(70)),
            "the table 'odd' cannot be made so",
        ),
    ],
    ids=["space", "emoji", "column", "column-emoji", "case", "own", "many", "wide"],
)
async def test_a_table_that_mysql_cannot_have_is_refused_before_its_first_row(
    mysql_server: MySQLServer,
    mysql_url: str,
    postgres_url: str,
    table: str,
    columns: str,
    why: str,
) -> None:
    await run_sql(postgres_url, f"CREATE TABLE {table} ({columns})")
    await run_sql(postgres_url, f"INSERT INTO {table} (id) VALUES (1)")

    with pytest.raises(SchemaMismatchError) as caught:
        await copy(postgres_url, mysql_url)

    assert "sink 'odd" in str(caught.value)
    assert why in str(caught.value)
    left = {name for (name,) in rows_of(mysql_server, mysql_url, "SHOW TABLES")}
    assert not [name for name in left if "odd" in name]


async def test_columns_that_mysql_cannot_have_are_not_added(
    mysql_server: MySQLServer, mysql_url: str, postgres_url: str
) -> None:
    await run_sql(postgres_url, 'CREATE TABLE t (id int PRIMARY KEY, "v " int)')
    fill(mysql_server, mysql_url, "CREATE TABLE t (id int PRIMARY KEY)")

    with pytest.raises(SchemaMismatchError, match="column 'v ' ends in a space"):
        await copy(postgres_url, mysql_url, mode="append", schema_change="evolve")


async def test_indexes_that_mysql_cannot_have_are_told_and_the_rows_are_copied(
    mysql_server: MySQLServer, mysql_url: str, postgres_url: str
) -> None:
    texts = ", ".join(f"w{n} text, v{n} varchar(255), i{n} int" for n in range(5))
    many = "; ".join(f"CREATE INDEX ON many (c{n})" for n in range(66))
    await run_sql(
        postgres_url,
        f"""CREATE TABLE t (id int PRIMARY KEY, {texts}, day date DEFAULT 'infinity');
        CREATE INDEX words ON t (w0, w1, w2, w3, w4);
        CREATE INDEX short ON t (v0, v1, v2, v3);
        CREATE INDEX fits ON t (v0, v1, v2, i0, i1, i2);
        CREATE INDEX "Twice" ON t (i0); CREATE INDEX twice ON t (i1);
        CREATE INDEX "PRIMARY" ON t (i2); CREATE INDEX "odd😀" ON t (i3);
        INSERT INTO t (id, w0, day) VALUES (1, 'a', NULL);
        CREATE TABLE many (id int PRIMARY KEY, {", ".join(f"c{n} int" for n in range(66))});
        INSERT INTO many (id) VALUES (1); {many};""",
    )

    notes = "\n".join(await copy(postgres_url, mysql_url))

    assert "not carried: the index 'words' (its entries may have 3,820 bytes" in notes
    assert "not carried: the index 'short' (its entries may have 4,080 bytes" in notes
    assert notes.count("a table has 64 at most") == 3
    assert "the default of 'day': 'infinity'::date" in notes
    assert rows_of(mysql_server, mysql_url, "SELECT id, w0 FROM t") == [(1, "a")]
    assert rows_of(mysql_server, mysql_url, "SELECT id FROM many") == [(1,)]
    made = str(rows_of(mysql_server, mysql_url, "SHOW CREATE TABLE t")[0][1])
    assert "KEY `fits` (`v0`,`v1`,`v2`,`i0`,`i1`,`i2`)" in made
    assert all(f"(`i{n}`)" in made for n in range(4))


async def test_texts_of_other_character_sets_have_the_room_of_their_column(
    mysql_server: MySQLServer, mysql_database: Callable[[], str], sqlite_url: str
) -> None:
    source, target = mysql_database(), mysql_database()
    fill(
        mysql_server,
        source,
        """CREATE TABLE t (id int PRIMARY KEY, e enum('é', 'ü') CHARACTER SET latin1,
        s set('é', 'ü') CHARACTER SET latin1, l tinytext CHARACTER SET latin1,
        u tinytext CHARACTER SET utf16)""",
        """INSERT INTO t VALUES (1, 'é', 'é,ü', REPEAT('é', 255), REPEAT('€', 127)),
        (2, 'ü', '', REPEAT('a', 255), REPEAT('😀', 63))""",
    )

    await copy(source, target)

    assert not same(of_mysql(mysql_server, source, "t"), of_mysql(mysql_server, target, "t"))
    for text in ("a" * 255 + " ", "a" * 255 + "b"):
        script(sqlite_url, "DROP TABLE IF EXISTS t; CREATE TABLE t (id INTEGER PRIMARY KEY, l)")
        script(sqlite_url, f"INSERT INTO t VALUES (3, '{text}')")
        with pytest.raises(PipelineFailedError, match="'l'"):
            await copy(sqlite_url, target, mode="append", name="longer")


@pytest.mark.parametrize("mode", ["ANSI", "ORACLE", "NO_BACKSLASH_ESCAPES,ANSI_QUOTES", ""])
async def test_the_servers_own_sql_mode_changes_nothing(
    mysql_server: MySQLServer,
    mysql_database: Callable[[], str],
    sqlite_url: str,
    mode: str,
) -> None:
    source, target = mysql_database(), mysql_database()
    fill(mysql_server, source, *FAMILY)
    before = mysql_server.query("SELECT @@GLOBAL.sql_mode")[0][0]
    mysql_server.execute(f"SET GLOBAL sql_mode = '{mode}'")
    try:
        await copy(source, target)
        await copy(source, sqlite_url)
    finally:
        mysql_server.execute(f"SET GLOBAL sql_mode = '{before}'")

    for table in ("parent", "child"):
        expected = of_mysql(mysql_server, source, table)
        assert not same(expected, of_mysql(mysql_server, target, table)), table
        assert not same(expected, of_sqlite(sqlite_url, table)), table


async def test_keys_that_only_the_source_holds_apart_are_told(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    source, target = mysql_database(), mysql_database()
    fill(
        mysql_server,
        source,
        "CREATE TABLE t (k varchar(9) COLLATE utf8mb4_bin PRIMARY KEY, n int)",
        "INSERT INTO t VALUES ('a', 1), ('A', 2)",
        "CREATE TABLE u (k varchar(9) COLLATE utf8mb4_general_ci PRIMARY KEY)",
    )
    fill(
        mysql_server,
        target,
        "CREATE TABLE t (k varchar(9) COLLATE utf8mb4_general_ci PRIMARY KEY, n int)",
        "CREATE TABLE u (k varchar(9) COLLATE utf8mb4_general_ci PRIMARY KEY)",
    )

    notes = await copy(source, target, mode="upsert", key=("k",))

    (told,) = [note for note in notes if "become one row" in note]
    assert told.startswith("sink 't'")


async def test_a_view_over_a_table_that_is_gone_is_refused_by_name(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    source, target = mysql_database(), mysql_database()
    fill(
        mysql_server,
        source,
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE VIEW v AS SELECT * FROM t",
        "DROP TABLE t",
    )

    with pytest.raises(SchemaMismatchError, match="table 'v': the view shows no columns"):
        await copy(source, target, tables=("v",))


async def test_a_flag_comes_back_from_every_kind_of_file(
    mysql_server: MySQLServer, mysql_database: Callable[[], str], tmp_path: Path
) -> None:
    source, target = mysql_database(), mysql_database()
    made = "CREATE TABLE t (id int PRIMARY KEY, flag tinyint(1), bits bit(1), big bigint unsigned)"
    fill(
        mysql_server,
        source,
        made,
        "INSERT INTO t VALUES (1, 1, 1, 1), (2, 0, 0, 18446744073709551615), (3, NULL, NULL, NULL)",
    )

    for end in ("csv", "jsonl", "parquet"):
        file = tmp_path / f"t.{end}"
        flow = Database(source).table("t").into(File(str(file)).replace())
        await Pipeline("out", flow).run()
        fill(mysql_server, target, "DROP TABLE IF EXISTS t", made)
        flow = File(str(file)).rows().into(Database(target).append("t"))
        await Pipeline(f"in {end}", flow).run()
        back = of_mysql(mysql_server, target, "t")
        assert not same(of_mysql(mysql_server, source, "t"), back), end


async def test_a_list_of_tables_is_whole_or_fails(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    names = [f"t{n:03}" for n in range(60)]
    fill(mysql_server, mysql_url, *(f"CREATE TABLE {name} (id int)" for name in names))

    async def cut() -> None:
        while True:
            await asyncio.to_thread(mysql_server.end_sessions, name_of(mysql_url))
            await asyncio.sleep(0)

    cutting = asyncio.create_task(cut())
    try:
        lost = 0
        for _ in range(200):
            try:
                found = await list_tables(parse_url(mysql_url))
            except TransientError:
                lost += 1
            else:
                assert [one.name for one in found] == names
            if lost > 20:
                break
    finally:
        cutting.cancel()
        await asyncio.wait([cutting])
    assert lost
