"""Functions of Arrow: tables of rows, tokens, bad rows, and values that survive the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl import ConfigError, DeadLetter, Limits, Pipeline, Row, SchemaMismatchError, merge
from etl.arrow.lines import table_of_lines
from etl.arrow.rows import ArrowRows, table_of
from etl.databases.postgres.arrow import arrow_payloads
from etl.databases.types import encode_column, postgres_type, text_decoder
from etl.engine.plan import make_plan
from etl.errors import DataError, PipelineFailedError, StageError
from etl.policy import OnError
from etl.rows import Column, Layout, Lines, TextRows, Type, ValueRows
from etl.testing.memory import MemorySink, MemorySource


@dataclass(frozen=True, slots=True)
class Order:
    id: int
    amount: Decimal
    note: str | None


ORDERS = [Order(n, Decimal(n) / 4, None if n % 3 == 0 else f"note {n}") for n in range(1, 21)]


def run(pipeline: Pipeline) -> Any:
    return asyncio.run(pipeline.run())


def ids(sink: MemorySink[Row]) -> list[int]:
    return [row["id"] for row in sink.rows]


def even(table: Any) -> Any:
    return table.filter(pc.equal(pc.bit_wise_and(table["id"], 1), 0))


# -- flows ------------------------------------------------------------------------------------


def test_rows_become_tables_and_rows_again_in_their_order() -> None:
    seen: list[int] = []

    def shouted(table: Any) -> Any:
        seen.append(table.num_rows)
        table = table.drop_columns(["amount"])
        return table.append_column("loud", pc.utf8_upper(table["note"]))

    sink = MemorySink[Row]()
    source = MemorySource(ORDERS, batch_rows=6)
    run(Pipeline("p", source.map_arrow(shouted).into(sink)))

    assert [dict(row) for row in sink.rows] == [
        {"id": one.id, "note": one.note, "loud": one.note and one.note.upper()} for one in ORDERS
    ]
    assert seen == [6, 6, 6, 2]  # a batch is a call


def test_functions_of_rows_stand_before_and_behind() -> None:
    sink = MemorySink[int]()
    source = MemorySource(ORDERS)
    stream = source.filter(lambda order: order.id > 10).map_arrow(even).map(lambda row: row["id"])
    run(Pipeline("p", stream.into(sink)))

    assert sink.rows == [12, 14, 16, 18, 20]


def test_a_function_runs_outside_the_event_loop() -> None:
    threads: set[int] = set()

    def noted(table: Any) -> Any:
        threads.add(threading.get_ident())
        return table

    run(Pipeline("p", MemorySource(ORDERS).map_arrow(noted).into(MemorySink[Row]())))

    assert threads
    assert threading.get_ident() not in threads


def test_a_batch_filtered_to_nothing_still_moves_the_position() -> None:
    def none(table: Any) -> Any:
        return table.slice(0, 0)

    sink = MemorySink[Row]()
    report = run(Pipeline("p", MemorySource(ORDERS).map_arrow(none).map_arrow(even).into(sink)))

    assert report.status == "completed"
    assert sink.rows == []
    (checkpoint,) = sink.memory.checkpoints.values()
    assert checkpoint.position == (20,)


@pytest.mark.parametrize("failing_write", range(1, 6))
def test_a_rerun_after_a_failure_loses_and_repeats_nothing(failing_write: int) -> None:
    sink = MemorySink[Row](fail_on_write=failing_write)
    flow = MemorySource(ORDERS, batch_rows=2).map_arrow(even).into(sink)
    pipeline = Pipeline("p", flow, limits=Limits(group_rows=1))

    with pytest.raises(PipelineFailedError):
        run(pipeline)
    sink.heal()
    run(pipeline)

    assert ids(sink) == list(range(2, 21, 2))


def test_several_sinks_get_the_same_rows() -> None:
    one, two = MemorySink[Row](), MemorySink[Row]()
    run(Pipeline("p", MemorySource(ORDERS).map_arrow(even).into(one, two)))

    assert ids(one) == ids(two) == list(range(2, 21, 2))


def test_lanes_keep_each_row_once() -> None:
    sink = MemorySink[Row]()
    source = MemorySource(ORDERS, incremental=False)
    limits = Limits(lanes=3, batch_rows=2)
    run(Pipeline("p", source.map_arrow(even).into(sink), limits=limits))

    assert sorted(ids(sink)) == list(range(2, 21, 2))


def test_a_merge_may_be_followed_by_a_function_of_arrow() -> None:
    sink = MemorySink[Row]()
    streams = [MemorySource(ORDERS[:10], name="a"), MemorySource(ORDERS[10:], name="b")]
    run(Pipeline("p", merge(*streams).map_arrow(even).into(sink)))

    assert sorted(ids(sink)) == list(range(2, 21, 2))


# -- what is refused ----------------------------------------------------------------------------


def test_the_plan_tells_of_the_function() -> None:
    flow = MemorySource(ORDERS).map_arrow(even).map_arrow(even).into(MemorySink[Row]())
    lines = make_plan("p", [flow], Limits()).explain()

    assert "  arrow  map_arrow even > map_arrow even (whole columns, in a thread)" in lines


def test_an_async_function_is_refused_when_the_flow_is_made() -> None:
    async def wrong(table: Any) -> Any:
        return table

    with pytest.raises(ConfigError, match="map_arrow"):
        MemorySource(ORDERS).map_arrow(wrong)


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl.flow.find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r"etl\[arrow\]"):
        MemorySource(ORDERS).map_arrow(even)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "returned NoneType; it must return a pyarrow.Table"),
        (pa.table({}), "without columns"),
        (pa.table([[1], [2]], names=["a", "a"]), "two columns called 'a'"),
        (pa.table([[1]], names=[""]), "no name"),
    ],
)
def test_what_is_no_table_of_rows_is_refused(result: object, words: str) -> None:
    sink = MemorySink[Row]()
    with pytest.raises(PipelineFailedError, match=words):
        run(Pipeline("p", MemorySource(ORDERS).map_arrow(lambda _: result).into(sink)))
    assert sink.rows == []


def test_rows_that_do_not_tell_their_types_are_refused() -> None:
    stream = MemorySource([{"id": 1}]).map_arrow(even)
    with pytest.raises(PipelineFailedError, match="dict, which do not tell the types"):
        run(Pipeline("p", stream.into(MemorySink[Row]())))


def test_a_type_without_a_match_is_refused_by_name() -> None:
    def odd(table: Any) -> Any:
        length = table.num_rows
        return table.append_column("gap", pa.array([None] * length, pa.month_day_nano_interval()))

    with pytest.raises(PipelineFailedError, match="column 'gap' has the Arrow type"):
        run(Pipeline("p", MemorySource(ORDERS).map_arrow(odd).into(MemorySink[Row]())))


# -- bad rows -----------------------------------------------------------------------------------


def picky(table: Any) -> Any:
    if not set(table["id"].to_pylist()).isdisjoint({7, 8, 20}):
        raise ValueError("a secret value")
    return even(table)


def test_a_failing_function_ends_the_run_and_is_named() -> None:
    sink = MemorySink[Row]()
    with pytest.raises(PipelineFailedError, match="map_arrow picky failed: ValueError") as failed:
        run(Pipeline("p", MemorySource(ORDERS, batch_rows=5).map_arrow(picky).into(sink)))
    assert "secret" not in str(failed.value)
    assert ids(sink) == [2, 4]


@pytest.mark.parametrize("policy", ["skip", DeadLetter()])
@pytest.mark.parametrize("batch_rows", [1, 4, 20])
def test_rows_that_a_function_fails_on_are_found_by_halves(
    policy: OnError, batch_rows: int
) -> None:
    sink = MemorySink[Row]()
    source = MemorySource(ORDERS, batch_rows=batch_rows)
    report = run(Pipeline("p", source.map_arrow(picky).into(sink), on_error=policy))

    assert ids(sink) == [2, 4, 6, 10, 12, 14, 16, 18]
    assert report.rows_rejected + report.rows_skipped == 3
    if isinstance(policy, DeadLetter):
        kept = sink.memory.rejects.values()
        assert {one.step for one in kept} == {"map_arrow picky"}


def test_a_function_that_fails_on_every_row_ends_the_run() -> None:
    def broken(table: Any) -> Any:
        raise KeyError("column")

    rows = [Order(n, Decimal(n), None) for n in range(300)]
    stream = MemorySource(rows, batch_rows=300).map_arrow(broken)
    policy = DeadLetter(max_rows=1000)
    with pytest.raises(PipelineFailedError):
        run(Pipeline("p", stream.into(MemorySink[Row]()), on_error=policy))


# -- values -------------------------------------------------------------------------------------


def column(name: str, declared: str, base: str, typmod: int = -1) -> Column:
    return Column(name=name, type=postgres_type(name=declared, base=base, typmod=typmod))


def numeric(precision: int, scale: int) -> Column:
    typmod = (precision << 16) + (scale & 0x7FF) + 4
    return column("v", f"numeric({precision},{scale})", "numeric", typmod)


_MIN, _MAX = datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)  # noqa: DTZ001
_TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
_NUMBERS = st.decimals(allow_nan=False, allow_infinity=False, places=4)
KINDS: dict[str, tuple[Column, st.SearchStrategy[Any]]] = {
    "boolean": (column("v", "boolean", "bool"), st.booleans()),
    "smallint": (column("v", "smallint", "int2"), st.integers(-(1 << 15), (1 << 15) - 1)),
    "integer": (column("v", "integer", "int4"), st.integers(-(1 << 31), (1 << 31) - 1)),
    "bigint": (column("v", "bigint", "int8"), st.integers(-(1 << 63), (1 << 63) - 1)),
    "real": (column("v", "real", "float4"), st.floats(width=32)),
    "double": (column("v", "double precision", "float8"), st.floats()),
    "numeric": (column("v", "numeric", "numeric"), _NUMBERS),
    "numeric(12,4)": (
        numeric(12, 4),
        st.decimals(Decimal("-99999999.9999"), Decimal("99999999.9999"), places=4),
    ),
    "numeric(60,4)": (
        numeric(60, 4),
        st.decimals(Decimal(-(10**50)), Decimal(10**50), places=4, allow_nan=False),
    ),
    "text": (column("v", "text", "text"), _TEXTS),
    "varchar": (
        column("v", "character varying(9)", "varchar", 13),
        st.text("ab\\\t\n", max_size=9),
    ),
    "bytea": (column("v", "bytea", "bytea"), st.binary()),
    "date": (column("v", "date", "date"), st.dates()),
    "time": (column("v", "time without time zone", "time"), st.times()),
    "timestamp": (
        column("v", "timestamp without time zone", "timestamp"),
        st.datetimes(_MIN, _MAX),
    ),
    "timestamptz": (
        column("v", "timestamp with time zone", "timestamptz"),
        st.datetimes(_MIN, _MAX, timezones=st.just(UTC)),
    ),
    "uuid": (column("v", "uuid", "uuid"), st.uuids()),
    "inet": (column("v", "inet", "inet"), st.ip_addresses().map(str)),
    "json": (column("v", "json", "json"), st.lists(st.integers() | _TEXTS)),
}


def there_and_back(values: Sequence[Any], of: Column) -> tuple[list[Any], list[Any]]:
    """Values as COPY text, as a table, and as COPY text again; both decoded."""
    fields = encode_column(values, of)
    data = "".join(f"{field}\n" for field in fields).encode()
    table = table_of_lines(data, [of])
    written = b"".join(arrow_payloads(ArrowRows(table, "test"), [of], "test")).decode()
    decode = text_decoder(of.type, nullable=True, column="v")
    return list(map(decode, fields)), list(map(decode, written.split("\n")[:-1]))


@pytest.mark.parametrize("kind", KINDS)
def test_values_survive_the_way_through_arrow(kind: str) -> None:
    of, values = KINDS[kind]

    @given(st.lists(st.none() | values, min_size=1))
    def check(found: list[Any]) -> None:
        before, after = there_and_back(found, of)
        assert list(map(repr, before)) == list(map(repr, after))

    check()


@given(st.lists(st.tuples(_TEXTS | st.none(), st.binary() | st.none()), min_size=1, max_size=9))
def test_texts_and_bytes_side_by_side_keep_their_rows(rows: list[tuple[Any, Any]]) -> None:
    columns = [column("t", "text", "text"), column("b", "bytea", "bytea")]
    fields = [
        encode_column(of, one) for of, one in zip(zip(*rows, strict=True), columns, strict=True)
    ]
    data = "".join("\t".join(line) + "\n" for line in zip(*fields, strict=True)).encode()
    table = table_of_lines(data, columns)

    assert list(zip(*(one.to_pylist() for one in table.columns), strict=True)) == rows
    assert b"".join(arrow_payloads(ArrowRows(table, "test"), columns, "test")) == data


@pytest.mark.parametrize(
    ("of", "field"),
    [
        (numeric(12, 4), "NaN"),
        (column("v", "date", "date"), "infinity"),
        (column("v", "date", "date"), "0044-03-15 BC"),
        (column("v", "date", "date"), "10000-01-01"),
        (column("v", "time without time zone", "time"), "24:00:00"),
        (column("v", "timestamp without time zone", "timestamp"), "-infinity"),
        (column("v", "timestamp with time zone", "timestamptz"), "294276-12-31 23:59:59+00"),
    ],
)
def test_a_value_that_arrow_does_not_hold_is_refused_by_column_and_row(
    of: Column, field: str
) -> None:
    data = "".join(f"{one}\n" for one in (r"\N", r"\N", field, r"\N")).encode()

    with pytest.raises(DataError, match=r"column 'v' .*, row 3 of the batch: Arrow's") as refused:
        table_of_lines(data, [of])
    assert (refused.value.column, refused.value.row) == ("v", 2)
    assert field not in str(refused.value)


def test_bytes_that_are_no_utf_8_are_refused() -> None:
    with pytest.raises(DataError, match="row 2 of the batch"):
        table_of_lines(b"a\n\xff\n", [column("v", "text", "text")])


DOUBLE = column("v", "double precision", "float8")
DIGITS = column("v", "numeric", "numeric")
STAMP = column("v", "timestamp", "timestamp")
DAY = column("v", "date", "date")


def written(table: Any, of: Column) -> list[str]:
    return b"".join(arrow_payloads(ArrowRows(table, "test"), [of], "sink 't'")).decode().split("\n")


@pytest.mark.parametrize(
    ("array", "of", "wanted"),
    [
        (pa.array([Decimal("1.50")], pa.decimal128(9, 2)), numeric(9, 1), "1.5"),
        (pa.array([1, None], pa.int64()), column("v", "smallint", "int2"), "1"),
        (pa.array([0.1]), numeric(9, 2), "0.1"),
        (pa.array([1.5], pa.float32()), DOUBLE, "1.5"),
        (pa.array([1.1], pa.float32()), DOUBLE, "1.100000023841858"),
        (pa.array([2**64 - 1], pa.uint64()), DIGITS, "18446744073709551615"),
        (pa.array(["1.50"]), DIGITS, "1.50"),
        (pa.array(["1.50", None]), numeric(9, 2), "1.50"),
        (pa.array(["1e1"]), numeric(9, 2), "1E+1"),
        (pa.array([str(UUID(int=1))]), column("v", "uuid", "uuid"), str(UUID(int=1))),
        (pa.array(['{"a": 1, "a": 2}']), column("v", "json", "json"), '{"a": 1, "a": 2}'),
        (pa.array(["infinity"]), column("v", "date", "date"), "infinity"),
        (pa.array(["a"]).dictionary_encode(), column("v", "text", "text"), "a"),
        (pa.array(["a"], pa.large_string()), column("v", "text", "text"), "a"),
        (pa.array([b"\1"], pa.binary(1)), column("v", "bytea", "bytea"), r"\\x01"),
        (pa.nulls(1), column("v", "date", "date"), r"\N"),
        (pa.array([1000], pa.timestamp("ns")), STAMP, "1970-01-01 00:00:00.000001"),
        (
            pa.array([0], pa.timestamp("s", "Europe/Berlin")),
            column("v", "timestamptz", "timestamptz"),
            "1970-01-01 00:00:00.000000Z",
        ),
        (pa.array([[1, 2]]), column("v", "json", "json"), "[1, 2]"),
    ],
)  # fmt: skip
def test_other_types_of_arrow_are_written_exactly(array: Any, of: Column, wanted: str) -> None:
    assert written(pa.table({"v": array}), of)[0] == wanted


@pytest.mark.parametrize(
    ("array", "of", "words"),
    [
        (pa.array([Decimal("1.25")], pa.decimal128(9, 2)), numeric(9, 1), "digits after the point"),
        (pa.array([1, 1 << 15]), column("v", "smallint", "int2"), "row 2"),
        (pa.array([0.125]), numeric(9, 2), "digits after the point"),
        (pa.array(["1.005"]), numeric(9, 2), "digits after the point"),
        (pa.array(["12345678901"]), column("v", "varchar(9)", "varchar", 13), "longer than 9"),
        (pa.array(["ok", "a\0b"]), column("v", "text", "text"), "NUL"),
        (pa.array(["1.5x"]), DIGITS, "row 1"),
        (pa.array(["no"]), column("v", "uuid", "uuid"), "not a UUID"),
        (pa.array(['{"a": 1, "a": 2}']), column("v", "jsonb", "jsonb"), "twice"),
        (pa.array(["a "]), column("v", "character(4)", "bpchar", 8), "spaces at its end"),
        (pa.array([1], pa.timestamp("ns")), column("v", "timestamp", "timestamp"), "keeps exactly"),
        (pa.array([-800_000], pa.date32()), column("v", "date", "date"), "keeps exactly"),
        (pa.array([1e300]), column("v", "real", "float4"), "row 1"),
        (pa.array([date(2020, 1, 1), None]), replace(DAY, nullable=False), "NULL"),
    ],
)  # fmt: skip
def test_what_a_column_would_bend_is_refused(array: Any, of: Column, words: str) -> None:
    with pytest.raises(DataError, match=words) as refused:
        written(pa.table({"v": array}), of)
    assert refused.value.column == "v"


def test_rows_of_every_kind_become_the_same_table() -> None:
    columns = [column("id", "bigint", "int8"), column("t", "text", "text")]
    decoders = [text_decoder(one.type, nullable=True, column=one.name) for one in columns]
    layout = Layout(columns, decoders, is_text=True)
    data = b"1\ta\\tb\n2\t\\N\n"
    wanted = {"id": [1, 2], "t": ["a\tb", None]}
    raw = TextRows(layout, Lines(data, 2))
    values = ValueRows(
        Layout(columns, [lambda v: v] * 2, is_text=False), [(1, "a\tb"), (2, None)], 0
    )

    assert len(raw) == 2
    for rows in (raw, TextRows(layout, raw.lines), list(raw), raw[0:2], values, list(values)):
        assert table_of(rows).to_pydict() == wanted
    assert table_of([row.replace(t="x") for row in raw]).to_pydict() == {
        "id": [1, 2],
        "t": ["x"] * 2,
    }
    more = TextRows(layout, Lines(b"1\ta\\tb\t7\tx\n2\t\\N\t8\ty\n", 2, hidden=2))
    assert table_of(more).to_pydict() == table_of(more[0:2]).to_pydict() == wanted
    assert table_of([raw[1]]).to_pydict() == {"id": [2], "t": [None]}


def test_a_replaced_value_must_be_one_of_the_column() -> None:
    columns = [column("id", "bigint", "int8")]
    layout = Layout(columns, [text_decoder(columns[0].type, nullable=True)], is_text=True)

    with pytest.raises(DataError, match="does not hold the str"):
        table_of([row.replace(id="x") for row in TextRows(layout, Lines(b"1\n", 1))])


@dataclass(frozen=True, slots=True)
class Moments:
    at: datetime
    day: date
    hour: time
    key: UUID
    doc: dict[str, int]
    ratio: float
    flag: bool
    blob: bytes


def test_dataclasses_tell_the_types_of_their_columns() -> None:
    one = Moments(
        datetime(2024, 1, 1, tzinfo=UTC), date(2024, 1, 1), time(1), UUID(int=1), {"a": 1}, 0.5,
        True, b"x",
    )  # fmt: skip
    table = table_of([one])

    assert [str(field.type) for field in table.schema] == [
        "timestamp[us, tz=UTC]", "date32[day]", "time64[us]", "string", "string", "double", "bool",
        "binary",
    ]  # fmt: skip
    assert table.to_pylist()[0]["doc"] == '{"a": 1}'
    with pytest.raises(DataError, match="column 'at'"):
        table_of([replace(one, at=one.at.replace(tzinfo=None))])


def test_a_column_of_several_kinds_is_refused() -> None:
    odd = Column(name="v", type=Type(kind="dynamic", name="any", dialect="sqlite"))
    rows = ValueRows(Layout([odd], [lambda v: v], is_text=False), [(1,), ("a",)], 0)

    with pytest.raises(SchemaMismatchError, match="several kinds"):
        table_of(rows)


def test_a_function_of_python_code_may_fail_with_any_error() -> None:
    def ends(table: Any) -> Any:
        raise StopIteration

    with pytest.raises(
        PipelineFailedError, match="map_arrow .*ends failed: StopIteration"
    ) as failed:
        run(Pipeline("p", MemorySource(ORDERS).map_arrow(ends).into(MemorySink[Row]())))
    assert isinstance(failed.value.errors[0], StageError)


async def test_an_abort_waits_for_the_call_that_goes_on_and_writes_nothing_of_it() -> None:
    begun, may_end = threading.Event(), threading.Event()
    ended: list[int] = []

    def slow(table: Any) -> Any:
        begun.set()
        may_end.wait(30)
        ended.append(table.num_rows)
        return table

    sink = MemorySink[Row]()
    running = await Pipeline("p", MemorySource(ORDERS).map_arrow(slow).into(sink)).start()
    await asyncio.to_thread(begun.wait, 30)
    abort = asyncio.create_task(running.abort())
    await asyncio.sleep(0)
    may_end.set()
    await abort

    assert ended == [2]
    assert sink.rows == []
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
