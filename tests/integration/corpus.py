# ruff: noqa: E501
"""Awkward tables of both databases, for ``test_copy_corpus.py``.

A table goes from one database to the other exactly, or is refused by name before the first row.
``refused`` tells, for a route, what the refusal must say; a route that it leaves out must copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Route: TypeAlias = Literal["pg-pg", "pg-lite", "lite-pg", "lite-lite"]


@dataclass(frozen=True, slots=True)
class Case:
    """One table.

    Attributes:
        sql: What makes and fills it.
        table: As SQL spells it.
        name: As ``--table`` spells it.
        keyed: It has a primary key, so that it can be upserted.
        refused: Texts that the refusal must hold, by route.
        columns: A list for SELECT, where ``*`` would not do.
    """

    table: str
    sql: str
    name: str = ""
    keyed: bool = True
    refused: Mapping[Route, tuple[str, ...]] = field(default_factory=dict[Route, tuple[str, ...]])

    @property
    def asked(self) -> str:
        return self.name or self.table.strip('"')


def _of(name: str, type_: str, *values: str, **more: object) -> Case:
    """A table with a key and one column of a type: each value, then NULL."""
    rows = ", ".join(f"({i}, {value})" for i, value in enumerate((*values, "NULL")))
    sql = f"CREATE TABLE {name} (id int PRIMARY KEY, v {type_}); INSERT INTO {name} VALUES {rows};"
    return Case(name, sql, **more)  # type: ignore[arg-type]


POSTGRES_TYPES = r"""
CREATE SCHEMA other; CREATE SCHEMA "odd schema.";
CREATE TYPE pair AS (a int, "b c" text);
CREATE TYPE other.pair AS (x int, y numeric);
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE DOMAIN other.words AS text[];
CREATE TYPE "odd schema."."Odd Type" AS (q text);
"""

POSTGRES: tuple[Case, ...] = (
    _of("t_bool", "bool", "true", "false"),
    _of("t_int2", "int2", "-32768", "32767", "0"),
    _of("t_int4", "int4", "-2147483648", "2147483647"),
    _of("t_int8", "int8", "-9223372036854775808", "9223372036854775807"),
    _of("t_float4", "float4", "'1e-45'", "3.4028235e38", "0.1", "16777217"),
    _of("t_float4_inf", "float4", "'Infinity'", "'-Infinity'"),
    _of("t_float8", "float8", "'5e-324'", "1.7976931348623157e308", "0.1", "1e15", "1e16"),
    _of("t_float4_zero", "float4", "'-0'", refused={"pg-lite": ("'v'", "-0.0")}),
    _of("t_float8_zero", "float8", "'-0'", refused={"pg-lite": ("'v'", "-0.0")}),
    _of("t_float8_inf", "float8", "'Infinity'", "'-Infinity'"),
    _of("t_float_nan", "float8", "'NaN'", refused={"pg-lite": ("'v'", "NaN")}),
    _of(
        "t_numeric",
        "numeric",
        "0",
        "1.10",
        "-0.000",
        "1e1000",
        "'NaN'",
        "1e-1000",
        "12345678901234567890.123456789",
    ),
    _of("t_numeric_inf", "numeric", "'Infinity'", "'-Infinity'"),
    _of("t_numeric_15_2", "numeric(15,2)", "1.1", "-1234567890123.45", "'NaN'"),
    _of(
        "t_numeric_wide",
        "numeric(1000,500)",
        "('1' || repeat('2', 499) || '.' || repeat('3', 500))::numeric",
        "0",
    ),
    _of("t_numeric_neg", "numeric(3,-2)", "12345", "-99900"),
    _of("t_numeric_small", "numeric(3,5)", "0.00123"),
    _of(
        "t_numeric_huge",
        "numeric",
        "('9' || repeat('8', 100000) || '.' || repeat('7', 16000))::numeric",
    ),
    _of(
        "t_date",
        "date",
        "'0001-01-01'",
        "'4713-01-01 BC'",
        "'5874897-12-31'",
        "'infinity'",
        "'-infinity'",
        "'10000-01-01'",
    ),
    _of(
        "t_timestamp",
        "timestamp",
        "'4713-01-01 00:00:00 BC'",
        "'294276-12-31 23:59:59.999999'",
        "'infinity'",
        "'-infinity'",
        "'2020-02-29 12:34:56.7'",
    ),
    _of("t_timestamp_0", "timestamp(0)", "'2020-02-29 12:34:56'"),
    _of(
        "t_timestamptz",
        "timestamptz",
        "'4713-01-02 00:00:00+00 BC'",
        "'294276-12-31 23:59:59.999999+00'",
        "'infinity'",
        "'-infinity'",
        "'2020-02-29 12:34:56.7+05:30'",
        "'1800-01-01 00:00:00+00'",
    ),
    _of("t_time", "time", "'24:00'", "'00:00'", "'23:59:59.999999'"),
    _of("t_timetz", "timetz", "'24:00-15:59'", "'12:00:00.5+05:30'", "'00:00:00+15:59:59'"),
    _of(
        "t_interval",
        "interval",
        "'1 year 2 mons -3 days 04:05:06.7'",
        "'-1 mons'",
        "'0'",
        "'178000000 years'",
        "'-00:00:00.000001'",
        "'1 day -1 second'",
    ),
    _of("t_interval_fields", "interval year to month", "'14 months'"),
    _of(
        "t_text",
        "text",
        "''",
        r"E'\t'",
        r"E'\n'",
        r"E'\r'",
        r"E'\\'",
        r"'\N'",
        r"'\.'",
        "'NULL'",
        "'\"'",
        "''''",
        r"E'\\n\\N'",
        "'😀'",
        "E'e\\u0301'",
        "E'\\u00e9'",
        "' trailing '",
        r"E'a\r\nb'",
        r"E'\x01\x7f'",
        "E'\\ufeff'",
        "E'\\u2028'",
        r"'\x41'",
        "'1'",
        "'1e5'",
        r"'{}'",
    ),
    _of("t_varchar", "varchar(3)", "'abc'", "''", "'äöü'"),
    _of("t_bpchar", "char(5)", "'abc'", "''", "'     '"),
    _of("t_bpchar_free", "bpchar", "'abc  '", "''"),
    _of("t_internal_char", '"char"', "'a'", "''", r"'\377'"),
    _of("t_name", "name", "'abc'", "repeat('n', 63)::name", "''"),
    _of(
        "t_bytea",
        "bytea",
        "''",
        r"'\x00'",
        "(SELECT decode(string_agg(lpad(to_hex(i), 2, '0'), '' ORDER BY i), 'hex') FROM generate_series(0, 255) i)",
    ),
    _of("t_large_text", "text", r"repeat(E'ab\t\\', 2500000)", "'x'"),
    _of("t_large_bytea", "bytea", r"decode(repeat('00ff', 5000000), 'hex')", r"'\x01'"),
    _of(
        "t_uuid",
        "uuid",
        "'00000000-0000-0000-0000-000000000000'",
        "'FFFFFFFF-ffff-ffff-ffff-ffffffffffff'",
    ),
    _of(
        "t_json",
        "json",
        """'{"b": 1, "a":  1.10, "b": 123456789012345678901234567890.5}'""",
        "'null'",
        "'1'",
        "'\"\"'",
        "'1e400'",
        r"""'"\u0000"'""",
        r"""'"\ud800"'""",
        "E'[1,\\n2]'",
    ),
    _of(
        "t_jsonb",
        "jsonb",
        """'{"b": 1, "a": 1.10}'""",
        "'null'",
        "'123456789012345678901234567890.5'",
        "'1e400'",
        "'\"\"'",
        r"""'"a\"b\\\\c\n"'""",
    ),
    _of("t_money", "money", "'-92233720368547758.08'", "'1.10'"),
    _of("t_tsvector", "tsvector", r"$$'a b':1A,2 'c\\d'$$", "''"),
    _of("t_tsquery", "tsquery", r"$$'a b' & !c:*A$$"),
    _of("t_bit", "bit(3)", "B'101'", "B'000'"),
    _of("t_varbit", "varbit", "B'1'", "B''", "B'01010101010101010101'"),
    _of("t_inet", "inet", "'192.168.0.1/24'", "'::1'", "'::ffff:1.2.3.4/96'"),
    _of("t_cidr", "cidr", "'10.0.0.0/8'", "'2001:db8::/32'"),
    _of("t_macaddr", "macaddr", "'08:00:2b:01:02:03'"),
    _of("t_macaddr8", "macaddr8", "'08:00:2b:01:02:03:04:05'"),
    _of("t_point", "point", "'(1.5,-2e-300)'", "'(NaN,Infinity)'"),
    _of("t_line", "line", "'{1,2,3}'"),
    _of("t_lseg", "lseg", "'[(0,0),(1,1)]'"),
    _of("t_box", "box", "'(2,2),(1,1)'"),
    _of("t_path", "path", "'[(0,0),(1,1)]'", "'((0,0),(1,1))'"),
    _of("t_polygon", "polygon", "'((0,0),(1,1),(1,0))'"),
    _of("t_circle", "circle", "'<(0,0),5>'"),
    _of("t_box_array", "box[]", "'{(2,2),(1,1);(4,4),(3,3)}'"),
    _of("t_xid8", "xid8", "'18446744073709551615'"),
    _of("t_xid", "xid", "'4294967295'"),
    _of("t_pg_lsn", "pg_lsn", "'FFFFFFFF/FFFFFFFF'"),
    _of("t_snapshot", "pg_snapshot", "'10:20:10,14,15'"),
    _of("t_tid", "tid", "'(1,2)'"),
    _of("t_oid", "oid", "4294967295", "0"),
    _of("t_regclass", "regclass", "'pg_class'", "0"),
    _of("t_regtype", "regtype", "'int4'", "'text[]'"),
    _of("t_jsonpath", "jsonpath", "'$.a[*] ? (@ > 1)'"),
    _of("t_acl", "aclitem", "'postgres=r/postgres'"),
    _of(
        "t_int_array",
        "int[]",
        "'{}'",
        "'{1,NULL,3}'",
        "'[-1:1]={1,2,3}'",
        "'{{1,2},{3,4}}'",
        "'[0:1][5:6]={{1,2},{3,4}}'",
    ),
    _of(
        "t_text_array",
        "text[]",
        "ARRAY['', NULL, 'NULL', '\"', '\\', ',', '{', E'\\t\\n', 'a b']",
        "'{{a,b},{c,d}}'",
    ),
    _of("t_numeric_array", "numeric(5,2)[]", "'{1.1,NaN}'"),
    _of("t_bytea_array", "bytea[]", r"ARRAY['\x00ff'::bytea, NULL]"),
    _of(
        "t_timestamptz_array",
        "timestamptz[]",
        "ARRAY['infinity'::timestamptz, '2020-01-01 00:00+00']",
    ),
    _of("t_range", "int4range", "'[1,5)'", "'empty'", "'(,)'", "'[3,)'"),
    _of("t_tstzrange", "tstzrange", "'[2020-01-01 00:00+00,infinity]'", "'(,2020-01-01 00:00+00)'"),
    _of("t_multirange", "nummultirange", "'{[1,2),(3.5,4]}'", "'{}'"),
    _of("t_range_array", "daterange[]", "ARRAY['[2020-01-01,2020-02-01)'::daterange]"),
    _of(
        "t_pair",
        "pair",
        r"""ROW(1, E'a"b,c\\(\n')::pair""",
        "ROW(NULL, NULL)::pair",
        "ROW(NULL, '')::pair",
    ),
    _of("t_pair_array", "pair[]", "ARRAY[ROW(1, 'x')::pair, NULL]"),
    _of("t_other_pair", "other.pair", "ROW(1, 1.10)::other.pair"),
    _of("t_odd_type", '"odd schema."."Odd Type"', 'ROW(\'x\')::"odd schema."."Odd Type"'),
    _of("t_positive", "positive", "1"),
    _of("t_words", "other.words", "'{a,NULL}'"),
    Case(
        "t_enum",
        """
        CREATE TYPE mood AS ENUM ('ok', 'it''s', 'a b', '', 'Ünï', E'tab\\t', E'back\\\\', ',"{}');
        CREATE TABLE t_enum (id int PRIMARY KEY, v mood, w mood NOT NULL);
        INSERT INTO t_enum SELECT i, l, l FROM unnest(enum_range(NULL::mood)) WITH ORDINALITY u(l, i);
    """,
    ),
    Case(
        "t_enum_key",
        """
        CREATE TYPE size AS ENUM ('small', 'large', 'huge');
        CREATE TABLE t_enum_key (id size PRIMARY KEY, v text);
        INSERT INTO t_enum_key VALUES ('large', 'a'), ('huge', 'b'), ('small', 'c');
    """,
    ),
    Case(
        "t_enum_array",
        """
        CREATE TYPE tint AS ENUM ('r', 'g');
        CREATE TABLE t_enum_array (id int PRIMARY KEY, v tint[]);
        INSERT INTO t_enum_array VALUES (1, '{r,g}');
    """,
    ),
    Case(
        "t_enum_other",
        """
        CREATE TYPE other."Mood 2" AS ENUM ('A', 'b');
        CREATE TABLE t_enum_other (id int PRIMARY KEY, v other."Mood 2");
        INSERT INTO t_enum_other VALUES (1, 'A'), (2, NULL);
    """,
    ),
    # -- keys
    Case(
        "k_none",
        "CREATE TABLE k_none (a int, b text); INSERT INTO k_none VALUES (1, 'x'), (1, 'x'), (NULL, NULL);",
        keyed=False,
    ),
    Case(
        "k_composite",
        "CREATE TABLE k_composite (a text, x int, b int, PRIMARY KEY (b, a)); INSERT INTO k_composite SELECT chr(97 + i % 26), i, i / 26 FROM generate_series(0, 5000) i;",
    ),
    Case(
        "k_text",
        r"CREATE TABLE k_text (k text PRIMARY KEY, v int); INSERT INTO k_text VALUES ('a', 1), ('A', 2), ('', 3), ('ä', 4), (E'\t', 5), (E'\\', 6), ('Z', 7), (' a', 8), ('_', 9), ('\N', 10), ('1', 11), (repeat('k', 2000), 12);",
    ),
    Case(
        "k_text_c",
        r"""CREATE TABLE k_text_c (k text COLLATE "C" PRIMARY KEY, v int); INSERT INTO k_text_c VALUES ('a', 1), ('A', 2), ('', 3), ('ä', 4);""",
    ),
    Case(
        "k_uuid",
        "CREATE TABLE k_uuid (k uuid PRIMARY KEY, v int); INSERT INTO k_uuid SELECT md5(i::text)::uuid, i FROM generate_series(1, 3000) i;",
    ),
    Case(
        "k_date",
        "CREATE TABLE k_date (k date PRIMARY KEY, v int); INSERT INTO k_date VALUES ('infinity', 1), ('-infinity', 2), ('0044-03-15 BC', 3), ('2020-01-01', 4);",
    ),
    Case(
        "k_timestamptz",
        "CREATE TABLE k_timestamptz (k timestamptz PRIMARY KEY, v int); INSERT INTO k_timestamptz SELECT timestamptz '2020-01-01 00:00+00' + i * interval '1 us', i FROM generate_series(1, 3000) i;",
    ),
    Case(
        "k_extreme",
        "CREATE TABLE k_extreme (v text, k bigint PRIMARY KEY); INSERT INTO k_extreme VALUES ('a', -9223372036854775808), ('b', 9223372036854775807), ('c', 0), ('d', -1);",
    ),
    Case(
        "k_numeric",
        "CREATE TABLE k_numeric (k numeric PRIMARY KEY, v int); INSERT INTO k_numeric VALUES ('NaN', 1), (1.10, 2), (-1e100, 3), ('Infinity', 4);",
    ),
    Case(
        "k_float",
        "CREATE TABLE k_float (k float8 PRIMARY KEY, v int); INSERT INTO k_float VALUES (0.1, 2), (-1e100, 3), ('Infinity', 4);",
    ),
    Case(
        "k_bytea",
        r"CREATE TABLE k_bytea (k bytea PRIMARY KEY, v int); INSERT INTO k_bytea VALUES ('\x', 1), ('\x00', 2), ('\xff5c', 3), ('\x5c', 4);",
    ),
    Case(
        "k_bool",
        "CREATE TABLE k_bool (k bool PRIMARY KEY, v int); INSERT INTO k_bool VALUES (true, 1), (false, 2);",
    ),
    Case(
        "k_char",
        "CREATE TABLE k_char (k char(3) PRIMARY KEY, v int); INSERT INTO k_char VALUES ('a', 1), ('ab', 2);",
    ),
    Case(
        "k_domain",
        "CREATE TABLE k_domain (k positive PRIMARY KEY, v int); INSERT INTO k_domain VALUES (1, 1), (2, 2);",
    ),
    Case(
        "k_interval",
        "CREATE TABLE k_interval (k interval PRIMARY KEY, v int); INSERT INTO k_interval VALUES ('1 mon', 1), ('29 days', 2), ('31 days', 3);",
    ),
    Case(
        "k_array",
        "CREATE TABLE k_array (k int[] PRIMARY KEY, v int); INSERT INTO k_array VALUES ('{1}', 1), ('{}', 2), ('{1,NULL}', 3);",
    ),
    Case(
        "k_inet",
        "CREATE TABLE k_inet (k inet PRIMARY KEY, v int); INSERT INTO k_inet VALUES ('1.2.3.4', 1), ('::1', 2);",
    ),
    Case(
        "k_unique_only",
        "CREATE TABLE k_unique_only (k int NOT NULL UNIQUE, v int); INSERT INTO k_unique_only VALUES (2, 1), (1, 2);",
        keyed=False,
    ),
    Case(
        "k_unique_null",
        "CREATE TABLE k_unique_null (k int UNIQUE, v int); INSERT INTO k_unique_null VALUES (NULL, 1), (NULL, 2), (1, 3);",
        keyed=False,
    ),
    Case(
        "k_deferrable",
        "CREATE TABLE k_deferrable (k int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v int); INSERT INTO k_deferrable VALUES (2, 1), (1, 2);",
        keyed=False,
    ),
    Case(
        "k_include",
        "CREATE TABLE k_include (v int, k int, PRIMARY KEY (k) INCLUDE (v)); INSERT INTO k_include VALUES (2, 1), (1, 2);",
    ),
    Case(
        "k_many",
        "CREATE TABLE k_many (a int, b text, c date, d uuid, v int, PRIMARY KEY (d, c, b, a)); INSERT INTO k_many VALUES (1, 'x', '2020-01-01', md5('1')::uuid, 1), (2, '', '2020-01-01', md5('1')::uuid, 1);",
    ),
    # -- shapes and names
    Case("s_empty", "CREATE TABLE s_empty (id int PRIMARY KEY, v text);"),
    Case(
        "s_zero",
        "CREATE TABLE s_zero (); INSERT INTO s_zero DEFAULT VALUES;",
        keyed=False,
        refused={"pg-pg": ("s_zero", "no columns"), "pg-lite": ("s_zero", "no columns")},
    ),
    Case(
        "s_one",
        "CREATE TABLE s_one (a text); INSERT INTO s_one VALUES (''), (NULL), (E'\\t'), ('\\.');",
        keyed=False,
    ),
    Case(
        "s_500",
        "DO $$ BEGIN EXECUTE 'CREATE TABLE s_500 (' || (SELECT string_agg(format('c%s int', i), ', ') FROM generate_series(1, 500) i) || ', PRIMARY KEY (c500))'; EXECUTE 'INSERT INTO s_500 SELECT ' || (SELECT string_agg(format('%s + i', i), ', ') FROM generate_series(1, 500) i) || ' FROM generate_series(1, 20) i'; END $$;",
    ),
    Case(
        "s_1600",
        "DO $$ BEGIN EXECUTE 'CREATE TABLE s_1600 (' || (SELECT string_agg(format('c%s int2', i), ', ') FROM generate_series(1, 1600) i) || ')'; EXECUTE 'INSERT INTO s_1600 SELECT ' || (SELECT string_agg(format('%s + i', i), ', ') FROM generate_series(1, 1600) i) || ' FROM generate_series(1, 3) i'; END $$;",
        keyed=False,
    ),
    Case(
        '"select"',
        'CREATE TABLE "select" ("from" int PRIMARY KEY, "where" text, "order" int); INSERT INTO "select" VALUES (1, \'x\', 2);',
    ),
    Case(
        '"Ünï 😀"',
        'CREATE TABLE "Ünï 😀" ("ключ" int PRIMARY KEY, "值" text); INSERT INTO "Ünï 😀" VALUES (1, \'x\');',
    ),
    Case(
        '"a.b"',
        'CREATE TABLE "a.b" ("c.d" int PRIMARY KEY, "e""f" text); INSERT INTO "a.b" VALUES (1, \'x\');',
        name='"a.b"',
    ),
    Case(
        '"q""q"',
        'CREATE TABLE "q""q" (" " int PRIMARY KEY, "%s" text, "{0}" int, "$1" int, ":x" int, "?" int); INSERT INTO "q""q" VALUES (1, \'x\', 1, 2, 3, 4);',
        name='"q""q"',
    ),
    Case(
        '"new\nline"',
        'CREATE TABLE "new\nline" ("a\nb" int PRIMARY KEY, "c\td" text, "e\\f" text, "--" int, "/*" int); INSERT INTO "new\nline" VALUES (1, \'x\', \'y\', 1, 2);',
    ),
    Case(
        '"{}"'.format("n" * 63),
        'CREATE TABLE "{0}" ("{1}" int PRIMARY KEY, v text); INSERT INTO "{0}" VALUES (1, \'x\');'.format(
            "n" * 63, "c" * 63
        ),
    ),
    Case(
        '"{}"'.format("ü" * 31),
        'CREATE TABLE "{0}" (id int PRIMARY KEY, v text); INSERT INTO "{0}" VALUES (1, \'x\');'.format(
            "ü" * 31
        ),
    ),
    Case(
        '"CaseTable"',
        'CREATE TABLE "CaseTable" ("Id" int PRIMARY KEY, v text); INSERT INTO "CaseTable" VALUES (1, \'x\');',
    ),
    Case(
        "s_case",
        "CREATE TABLE s_case (id int PRIMARY KEY, v text, \"V\" text); INSERT INTO s_case VALUES (1, 'x', 'y');",
        refused={"pg-lite": ("'v'", "'V'", "apart")},
    ),
    Case(
        "s_system",
        "CREATE TABLE s_system (rowid int PRIMARY KEY, oid int, _rowid_ text); INSERT INTO s_system VALUES (5, 6, 'x'), (1, 2, 'y');",
    ),
    Case(
        "s_place",
        "CREATE TABLE s_place (etl_place int PRIMARY KEY, etl_row int, place int); INSERT INTO s_place VALUES (1, 2, 3);",
    ),
    Case(
        "etl_order",
        "CREATE TABLE etl_order (etl_0 int PRIMARY KEY, etl_order text, etl_1 int, etl_row int); INSERT INTO etl_order VALUES (1, 'x', 2, 3), (2, 'y', 1, 4);",
    ),
    Case(
        '"a*b?"',
        'CREATE TABLE "a*b?" (id int PRIMARY KEY, "*" text); INSERT INTO "a*b?" VALUES (1, \'x\'); CREATE TABLE axbx (id int);',
        name='"a*b?"',
    ),
    Case(
        "s_dropped",
        "CREATE TABLE s_dropped (a int, id int PRIMARY KEY, gone text, v text); INSERT INTO s_dropped VALUES (1, 2, 'g', 'v'); ALTER TABLE s_dropped DROP COLUMN gone; ALTER TABLE s_dropped DROP COLUMN a; ALTER TABLE s_dropped ADD COLUMN z int DEFAULT 7;",
    ),
    # -- kinds of tables
    Case(
        "r_part",
        "CREATE TABLE r_part (id int, d date, PRIMARY KEY (id, d)) PARTITION BY RANGE (d); CREATE TABLE r_part_1 PARTITION OF r_part FOR VALUES FROM ('2020-01-01') TO ('2021-01-01'); CREATE TABLE r_part_2 PARTITION OF r_part DEFAULT; INSERT INTO r_part VALUES (1, '2020-05-05'), (2, '2022-01-01'), (1, '1999-01-01');",
    ),
    Case(
        "r_parent",
        "CREATE TABLE r_parent (id int PRIMARY KEY, v text); CREATE TABLE r_child (w int) INHERITS (r_parent); INSERT INTO r_parent VALUES (1, 'p'); INSERT INTO r_child VALUES (1, 'c', 5), (2, 'c', 6);",
        keyed=False,
    ),
    Case("r_child", "SELECT 1;", keyed=False),
    Case(
        "r_generated",
        "CREATE TABLE r_generated (id int PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v * 2) STORED); INSERT INTO r_generated VALUES (1, 5), (2, NULL);",
    ),
    Case(
        "r_always",
        "CREATE TABLE r_always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text); INSERT INTO r_always (v) VALUES ('a'), ('b'); DELETE FROM r_always WHERE id = 1;",
    ),
    Case(
        "r_default",
        "CREATE TABLE r_default (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v text DEFAULT 'd', n serial); INSERT INTO r_default (v) VALUES (NULL), (DEFAULT);",
    ),
    Case(
        "r_check",
        "CREATE TABLE r_check (id int PRIMARY KEY CHECK (id > 0), v text NOT NULL CHECK (v <> '')); INSERT INTO r_check VALUES (1, 'x');",
    ),
    Case(
        "r_fk_child",
        "CREATE TABLE z_fk_parent (id int PRIMARY KEY, v text); CREATE TABLE r_fk_child (id int PRIMARY KEY, p int REFERENCES z_fk_parent, self int REFERENCES r_fk_child); INSERT INTO z_fk_parent VALUES (1, 'x'); INSERT INTO r_fk_child VALUES (1, 1, 2), (2, NULL, 1);",
    ),
    Case("z_fk_parent", "SELECT 1;"),
    Case(
        "r_trigger",
        "CREATE TABLE r_trigger (id int PRIMARY KEY, v text); CREATE FUNCTION r_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := NEW.v || '!'; RETURN NEW; END $$; CREATE TRIGGER t BEFORE INSERT ON r_trigger FOR EACH ROW EXECUTE FUNCTION r_trigger(); INSERT INTO r_trigger VALUES (1, 'x');",
    ),
    Case(
        "r_rls",
        "CREATE TABLE r_rls (id int PRIMARY KEY, v text); ALTER TABLE r_rls ENABLE ROW LEVEL SECURITY; INSERT INTO r_rls VALUES (1, 'x');",
    ),
    Case(
        "r_unlogged",
        "CREATE UNLOGGED TABLE r_unlogged (id int PRIMARY KEY, v text); INSERT INTO r_unlogged VALUES (1, 'x');",
    ),
    Case(
        "other.r_schema",
        "CREATE TABLE other.r_schema (id int PRIMARY KEY, v text); INSERT INTO other.r_schema VALUES (1, 'x');",
    ),
    Case(
        '"odd schema."."Odd.Table"',
        'CREATE TABLE "odd schema."."Odd.Table" (id int PRIMARY KEY, v text); INSERT INTO "odd schema."."Odd.Table" VALUES (1, \'x\');',
        name='"odd schema."."Odd.Table"',
    ),
    Case(
        "r_view",
        "CREATE TABLE v_base (id int PRIMARY KEY, v text); INSERT INTO v_base VALUES (1, 'x'); CREATE VIEW r_view AS SELECT * FROM v_base; CREATE MATERIALIZED VIEW r_mat AS SELECT * FROM v_base;",
        keyed=False,
    ),
    Case("r_mat", "SELECT 1;", keyed=False),
)

SQLITE: tuple[Case, ...] = (
    _of("a_int", "INTEGER", "-9223372036854775808", "9223372036854775807", "0"),
    _of(
        "a_text",
        "TEXT",
        "''",
        "'x'",
        "'1'",
        "'1e5'",
        "char(9, 10, 13, 92)",
        r"'\N'",
        r"'\.'",
        "'😀'",
        "' '",
    ),
    _of("a_real", "REAL", "0.1", "1e308", "5e-324", "-0.0", "1", "9007199254740993"),
    _of("a_real_inf", "REAL", "9e999", "-9e999"),
    _of("a_blob", "BLOB", "x''", "x'00ff5c0a'", "x'5c4e'"),
    _of("a_none", "", "1", "2"),
    _of("a_none_text", "", "'a'", "'1'"),
    _of("a_numeric", "NUMERIC", "1", "1.5", "-0.1", "1e300", "9007199254740993"),
    _of("a_numeric_inf", "NUMERIC", "9e999", "1"),
    _of("a_decimal", "DECIMAL(10,2)", "1.10", "12345678.91", "1"),
    _of(
        "a_decimal_text",
        "DECIMAL(40,2)",
        "1",
        "'12345678901234567890123.45'",
        "'abc'",
        refused={"lite-pg": ("'v'", "DECIMAL(40,2)", "several kinds")},
    ),
    _of("a_bool", "BOOLEAN", "0", "1"),
    _of("a_bool_other", "BOOLEAN", "0", "1", "2"),
    _of("a_bool_text", "BOOLEAN", "'true'", "'false'"),
    _of("a_date_iso", "DATE", "'2020-01-31'", "'0001-01-01'", "'9999-12-31'"),
    _of("a_date_odd", "DATE", "'31.01.2020'", "'2020-1-1'", "'2020-02-30'"),
    _of("a_date_unix", "DATE", "1580428800", "0"),
    _of("a_date_julian", "DATE", "2458849.5", "2458850.25"),
    _of("a_datetime", "DATETIME", "'2020-01-31 12:00:00'", "'2020-01-31 12:00:00.123456'"),
    _of("a_datetime_t", "DATETIME", "'2020-01-31T12:00:00'", "'2020-01-31T12:00'"),
    _of("a_datetime_z", "DATETIME", "'2020-01-31T12:00:00Z'", "'2020-01-31 12:00:00+05:30'"),
    _of("a_datetime_nano", "DATETIME", "'2020-01-31 12:00:00.123456789'"),
    _of("a_datetime_mixed", "DATETIME", "'2020-01-31 12:00:00'", "'2020-01-31'", "'now'"),
    _of("a_datetime_zones", "DATETIME", "'2020-01-31 12:00:00+23:00'"),
    _of("a_time", "TIME", "'12:00:00'", "'23:59'", "'00:00:00.5'"),
    _of("a_time_24", "TIME", "'24:00:00'"),
    _of("a_json", "JSON", """'{"b": 1, "a":  1.10, "b": 2}'""", "'[1e400]'", r"""'["\\u00e9"]'"""),
    _of("a_json_nul", "JSON", r"""'["\u0000"]'""", r"""'["\ud800"]'"""),
    _of("a_json_scalar", "JSON", "'\"x\"'", "'null'"),
    _of(
        "a_json_number",
        "JSON",
        "'1'",
        "'{}'",
        refused={"lite-pg": ("'v'", "JSON", "several kinds")},
    ),
    _of(
        "a_json_deep",
        "JSON",
        "replace(hex(zeroblob(3000)), '00', '[') || replace(hex(zeroblob(3000)), '00', ']')",
    ),
    _of(
        "a_uuid",
        "UUID",
        "'00000000-0000-0000-0000-00000000000a'",
        "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
    ),
    _of("a_uuid_blob", "UUID", "x'00112233445566778899aabbccddeeff'"),
    _of("a_varchar", "VARCHAR(3)", "'abcdef'", "''"),
    _of("a_mixed", "", "1", "'a'", "x'00'", "1.5", refused={"lite-pg": ("'v'", "several kinds")}),
    _of(
        "a_mixed_text",
        "TEXT",
        "'a'",
        "x'00'",
        refused={"lite-pg": ("'v'", "TEXT", "several kinds")},
    ),
    _of(
        "a_mixed_int",
        "INTEGER",
        "1",
        "'a'",
        refused={"lite-pg": ("'v'", "INTEGER", "several kinds")},
    ),
    _of("a_blob_text", "BLOB", "'a'", "'\\x41'"),
    _of("a_text_blob", "TEXT", "x'00'", "x'ff'"),
    _of("a_int_real", "INTEGER", "1", "1.5", "1e300"),
    _of("a_int_real_big", "INTEGER", "9223372036854775807", "0.5"),
    _of("a_empty", "WEIRD TYPE(1,2)"),
    _of("a_quoted_type", '"odd ""type"', "1"),
    _of("a_nul", "TEXT", "'a' || char(0) || 'b'", refused={"lite-pg": ("'v'", "NUL")}),
    _of(
        "a_invalid",
        "TEXT",
        "CAST(x'ff41' AS TEXT)",
        refused={"lite-pg": ("'v'", "UTF-8"), "lite-lite": ("'v'", "UTF-8")},
    ),
    _of("a_large", "BLOB", "zeroblob(10000000)", "x'01'"),
    Case(
        "b_without",
        "CREATE TABLE b_without (b TEXT, a INTEGER, v, PRIMARY KEY (b, a)) WITHOUT ROWID; INSERT INTO b_without VALUES ('x', 1, 2), ('X', 1, 3), ('', -1, NULL);",
    ),
    Case(
        "b_strict",
        "CREATE TABLE b_strict (id INTEGER PRIMARY KEY, i INT, r REAL, t TEXT, b BLOB, a ANY) STRICT; INSERT INTO b_strict VALUES (1, 2, 3, '4', x'05', '6'), (2, NULL, NULL, NULL, NULL, NULL);",
    ),
    Case(
        "b_strict_any",
        "CREATE TABLE b_strict_any (id INTEGER PRIMARY KEY, a ANY) STRICT; INSERT INTO b_strict_any VALUES (1, '6'), (2, 6);",
        refused={"lite-pg": ("'a'", "several kinds")},
    ),
    Case(
        "b_pk_desc",
        "CREATE TABLE b_pk_desc (id INTEGER PRIMARY KEY DESC, v); INSERT INTO b_pk_desc VALUES (3, 1), (-1, 2);",
    ),
    Case(
        "b_pk_int",
        "CREATE TABLE b_pk_int (id INT PRIMARY KEY, v); INSERT INTO b_pk_int VALUES (3, 1), (-1, 2);",
    ),
    Case(
        "b_pk_null",
        "CREATE TABLE b_pk_null (id TEXT PRIMARY KEY, v); INSERT INTO b_pk_null VALUES (NULL, 1), (NULL, 2), ('a', 3);",
        refused={"lite-pg": ("'id'", "NULL"), "lite-lite": ("'id'", "NULL")},
    ),
    Case(
        "b_pk_mixed",
        "CREATE TABLE b_pk_mixed (id PRIMARY KEY, v); INSERT INTO b_pk_mixed VALUES (1, 1), (2.5, 2), ('a', 3), (x'00', 4), ('1', 5);",
        refused={"lite-pg": ("'id'", "several kinds")},
    ),
    Case(
        "b_pk_real",
        "CREATE TABLE b_pk_real (id REAL PRIMARY KEY, v); INSERT INTO b_pk_real VALUES (1, 1), (2.5, 2), (-9e999, 3);",
    ),
    Case(
        "b_pk_blob",
        "CREATE TABLE b_pk_blob (id BLOB PRIMARY KEY, v); INSERT INTO b_pk_blob VALUES (x'00', 1), (x'ff', 2), (x'', 3);",
    ),
    Case(
        "b_pk_nocase",
        "CREATE TABLE b_pk_nocase (id TEXT COLLATE NOCASE PRIMARY KEY, v); INSERT INTO b_pk_nocase VALUES ('b', 1), ('A', 2), ('_', 3), ('ä', 4), ('Ä', 5);",
    ),
    Case(
        "b_nocase",
        "CREATE TABLE b_nocase (id INTEGER PRIMARY KEY, v TEXT COLLATE NOCASE UNIQUE); INSERT INTO b_nocase VALUES (1, 'a'), (2, 'B');",
    ),
    Case(
        "b_rowid",
        "CREATE TABLE b_rowid (rowid TEXT, oid TEXT, _rowid_ TEXT); INSERT INTO b_rowid VALUES ('a', 'b', 'c'), ('a', 'b', 'c');",
        keyed=False,
    ),
    Case(
        "b_none",
        "CREATE TABLE b_none (a, b); INSERT INTO b_none VALUES (1, 'x'), (1, 'x'), (NULL, NULL);",
        keyed=False,
    ),
    Case(
        "b_generated",
        "CREATE TABLE b_generated (id INTEGER PRIMARY KEY, a INT, s INT AS (a * 2) STORED, w INT AS (a * 3)); INSERT INTO b_generated VALUES (1, 5), (2, NULL);",
    ),
    Case(
        "b_auto",
        "CREATE TABLE b_auto (id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO b_auto VALUES (1, 1), (2, 2); DELETE FROM b_auto WHERE id = 1;",
    ),
    Case(
        "b_fts",
        "CREATE VIRTUAL TABLE b_fts USING fts5(title, body); INSERT INTO b_fts VALUES ('a', 'b');",
        keyed=False,
    ),
    Case(
        "b_view",
        "CREATE TABLE b_base (id INTEGER PRIMARY KEY); CREATE VIEW b_view AS SELECT * FROM b_base;",
        keyed=False,
    ),
    Case(
        '"B Case"',
        'CREATE TABLE "B Case" ("Id" INTEGER PRIMARY KEY, "From" TEXT, "a.b" INT, "q""q" INT); INSERT INTO "B Case" VALUES (1, \'x\', 2, 3);',
    ),
    Case(
        '"b\nnew"',
        'CREATE TABLE "b\nnew" ("a\nb" INTEGER PRIMARY KEY, "?" INT, ":x" INT, "%s" INT, "{}" INT); INSERT INTO "b\nnew" VALUES (1, 2, 3, 4, 5);',
    ),
    Case(
        '"b.dot"',
        'CREATE TABLE "b.dot" (id INTEGER PRIMARY KEY); INSERT INTO "b.dot" VALUES (1);',
        name='"b.dot"',
    ),
    Case(
        "etl_b",
        "CREATE TABLE etl_b (etl_0 INTEGER, etl_1 INTEGER PRIMARY KEY, etl_order TEXT); INSERT INTO etl_b VALUES (1, 3, 'x'), (2, 2, 'y');",
    ),
    Case(
        "b_empty_column",
        'CREATE TABLE b_empty_column (id INTEGER PRIMARY KEY, "" INT);',
        refused={
            "lite-pg": ("'b_empty_column'", "without a name"),
            "lite-lite": ("'b_empty_column'", "without a name"),
        },
    ),
    Case(
        "b_long",
        "CREATE TABLE b_long (id INTEGER PRIMARY KEY, {} INT);".format("c" * 64),
        refused={"lite-pg": ("c" * 64, "63")},
    ),
    Case(
        "b_500",
        "CREATE TABLE b_500 (id INTEGER PRIMARY KEY, {}); INSERT INTO b_500 (id, c7) VALUES (1, 2);".format(
            ", ".join(f"c{i} INT" for i in range(500))
        ),
    ),
    Case(
        "b_1700",
        "CREATE TABLE b_1700 ({}); INSERT INTO b_1700 (c7) VALUES (2);".format(
            ", ".join(f"c{i} INT" for i in range(1700))
        ),
        keyed=False,
        refused={"lite-pg": ("'b_1700'", "1,600")},
    ),
    Case(
        "b_fk",
        "CREATE TABLE z_parent (id INTEGER PRIMARY KEY); CREATE TABLE b_fk (id INTEGER PRIMARY KEY, p INT REFERENCES z_parent(id)); INSERT INTO z_parent VALUES (1); INSERT INTO b_fk VALUES (1, 1), (2, NULL);",
    ),
    Case(
        "b_default",
        "CREATE TABLE b_default (id INTEGER PRIMARY KEY, v TEXT DEFAULT 'd' NOT NULL, w INT CHECK (w > 0)); INSERT INTO b_default (id, w) VALUES (1, 1);",
    ),
)
