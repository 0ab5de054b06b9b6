"""``etl rejects``: look at the rows that were refused, and send them again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from etl.cli.discover import find_pipeline, module_name, split_target
from etl.cli.screen import Screen
from etl.connector import StoredReject, Target
from etl.databases.database import Database, driver_of
from etl.databases.stored import readable_row
from etl.engine.redo import Redone
from etl.errors import EXIT_DONE, EXIT_REJECTS
from etl.figures import count, plural
from etl.observe.jsonlines import as_line
from etl.pipeline import Pipeline


async def read_rejects(target: str) -> list[tuple[str, StoredReject]]:
    """The rejects in a database, or those of a pipeline in each of its targets, by their place."""
    if "://" in target or target.startswith("env:"):
        return await _of_database(Database(target), None)
    pipeline = find_pipeline(target)
    return [
        one
        for database in databases_of(pipeline)
        for one in await _of_database(database, pipeline.name)
    ]


def databases_of(pipeline: Pipeline) -> list[Database]:
    """The databases that a pipeline writes into, each once."""
    targets: dict[Target, None] = {
        sink.target: None for flow in pipeline.flows for sink in flow.sinks
    }
    return [target for target in targets if isinstance(target, Database)]


async def _of_database(database: Database, pipeline: str | None) -> list[tuple[str, StoredReject]]:
    url = database.url
    async with driver_of(url).open_state(url) as store:
        return [(database.name, one) for one in await store.rejects(pipeline)]


def show_rejects(
    screen: Screen, rejects: Sequence[tuple[str, StoredReject]], *, values: bool
) -> None:
    """A line for each; what may hold a row's values only where it is asked for."""
    if screen.json:
        for place, one in rejects:
            screen.out(as_line(_record(place, one, values=values)))
        return
    places = {place for place, _ in rejects}
    pipelines = {one.key.pipeline for _, one in rejects}
    rows: list[tuple[str, ...]] = []
    for place, one in rejects:
        rows.append(
            (
                *([place] if len(places) > 1 else []),
                *([one.key.pipeline] if len(pipelines) > 1 else []),
                re.sub(r"\.\d+", "", one.rejected_at),
                one.key.flow,
                one.key.sink,
                one.step,
                one.column or "-",
                one.row_key or "-",
                one.reason + (f" (sent again {plural(one.tries, 'time')})" if one.tries else ""),
                *([one.detail or "-", readable_row(one.row)] if values else []),
            )
        )
    head = [
        *(["database"] if len(places) > 1 else []),
        *(["pipeline"] if len(pipelines) > 1 else []),
        *("when", "flow", "sink", "step", "column", "key", "reason"),
        *(["detail", "row"] if values else []),
    ]
    screen.table(head, rows)
    screen.say(plural(len(rows), "rejected row"))


def _record(place: str, one: StoredReject, *, values: bool) -> dict[str, object]:
    record: dict[str, object] = {
        "database": place,
        "id": one.number,
        "pipeline": one.key.pipeline,
        "flow": one.key.flow,
        "sink": one.key.sink,
        "partition": one.key.partition,
        "position": _parsed(one.position),
        "ordinal": one.ordinal,
        "step": one.step,
        "column": one.column,
        "reason": one.reason,
        "sqlstate": one.sqlstate,
        "key": _parsed(one.row_key),
        "tries": one.tries,
        "published": not one.staged,
        "run_id": one.run_id,
        "rejected_at": one.rejected_at,
    }
    if values:
        record |= {"detail": one.detail, "row": _parsed(one.row)}
    return record


def _parsed(text: str | None) -> object:
    try:
        return json.loads(text) if text is not None else None
    except ValueError:
        return text


async def retry_rejects(screen: Screen, target: str, *, take_over: bool) -> int:
    """Send the rejects of a pipeline again; exit code 3 where some stay."""
    pipeline = find_pipeline(target)
    module = module_name(split_target(target)[0])
    done = await pipeline.retry_rejects(module=module, take_over=take_over)
    _show_redone(screen, [one for one in done if one.settled or one.refused])
    left = sum(one.refused for one in done)
    for database in databases_of(pipeline):
        waiting = [one for _, one in await _of_database(database, pipeline.name) if one.staged]
        if waiting:
            screen.note(
                f"{plural(len(waiting), 'rejected row')} in {database.name} belong to a load that"
                " is not finished; run the pipeline to its end first"
            )
    if left:
        screen.note(f"{plural(left, 'row')} were refused again; see: etl rejects show {target}")
    return EXIT_REJECTS if left else EXIT_DONE


def _show_redone(screen: Screen, done: Sequence[Redone]) -> None:
    if screen.json:
        for one in done:
            screen.out(
                as_line(
                    {
                        "flow": one.flow,
                        "sink": one.sink,
                        "settled": one.settled,
                        "rows_written": one.rows_written,
                        "refused": one.refused,
                    }
                )
            )
        return
    if not done:
        screen.say("no rejected rows to send again")
        return
    rows = [
        (one.flow, one.sink, count(one.settled), count(one.rows_written), count(one.refused))
        for one in done
    ]
    screen.table(("flow", "sink", "settled", "rows written", "refused again"), rows, right="<<>>>")
