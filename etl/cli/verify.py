"""``etl verify``: whether the target holds what a copy would have put there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from time import monotonic
from typing import Any

from etl.cli.copy import CopyOptions, plan_copy
from etl.cli.screen import Screen
from etl.databases.database import Database, DatabaseSource, driver_of
from etl.errors import EXIT_DONE, EXIT_FAILED, ConfigError
from etl.figures import count, plural, printable
from etl.flow import Flow
from etl.pipeline import Pipeline
from etl.repair import Repaired, repair_all
from etl.verification import Difference, Pair, Progress, Verdict, verify_all

_LINES_EVERY_S = 5.0


async def verify_copy(
    screen: Screen,
    source: Database,
    target: Database,
    options: CopyOptions,
    like: Pair,
    *,
    repair: bool = False,
) -> int:
    """Compare the tables that ``etl copy`` would copy, each with the one it would write."""
    planned = await plan_copy(source, target, options)
    return await verify_pipeline(screen, planned.pipeline, like, repair=repair)


async def verify_pipeline(
    screen: Screen, pipeline: Pipeline, like: Pair, *, repair: bool = False
) -> int:
    """Compare each source table of a pipeline with the tables that it is written into.

    Args:
        like: How; its tables are left out of account.
        repair: Rewrite the rows that differ, and compare again.

    Raises:
        ConfigError: A flow changes its rows, so that its target cannot equal its source.
    """
    code = EXIT_DONE
    for source, target, pairs in _pairs(pipeline, like):
        progress = _Shown(screen)
        try:
            if repair:

                def tell(one: Repaired, progress: _Shown = progress) -> None:
                    progress.close()
                    _show_repair(screen, one)

                await repair_all(source, target, pairs, pipeline.name, progress, tell)
            verdicts = await verify_all(source, target, pairs, progress)
        finally:
            progress.close()
        for verdict in verdicts:
            show_verdict(screen, verdict, most=like.most)
            code = code if verdict.equal else EXIT_FAILED
    return code


def refuse_unhashed(source: Database, target: Database) -> None:
    """Refuse databases that cannot be compared, before anything is copied between them.

    Raises:
        ConfigError: One has a dialect without hashes.
    """
    for database in (source, target):
        url = database.url
        driver_of(url).open_snapshot(url, side="source")  # is not entered, so nothing connects


def _pairs(pipeline: Pipeline, like: Pair) -> list[tuple[Database, Database, list[Pair]]]:
    """The pairs of tables of a pipeline, by pairs of databases."""
    groups: dict[tuple[Database, Database], list[Pair]] = {}
    for flow in pipeline.flows:
        source = _plain_source(flow)
        for sink in flow.sinks:
            if not isinstance(sink.target, Database) or sink.add:
                raise ConfigError(
                    f"flow {flow.name!r}: {sink.table!r} does not hold the rows as they are in the"
                    " source, so the two cannot be compared; nothing was compared"
                )
            pair = replace(
                like,
                source=source.spec.table or "",
                target=sink.table,
                key=like.key or source.spec.key,
            )
            groups.setdefault((source.database, sink.target), []).append(pair)
    return [(*databases, pairs) for databases, pairs in groups.items()]


def _plain_source(flow: Flow) -> DatabaseSource[Any]:
    """The table of a flow whose rows nothing changes."""
    origin = flow.stream.origin
    if flow.stream.steps or not isinstance(origin, DatabaseSource):
        why = "has functions or several sources"
    elif origin.spec.table is None:
        why = "reads a query"
    elif origin.spec.steps or origin.spec.limit is not None:
        why = "has declared steps or a limit"
    else:
        return origin
    raise ConfigError(
        f"flow {flow.name!r} {why}: its target is not meant to equal a table of the source, so"
        " there is nothing to compare. Compare two tables with etl verify SOURCE_URL TARGET_URL"
        " --table NAME"
    )


def is_file(target: str) -> bool:
    """Whether a command line's only argument is meant as a pipeline's file, not as a URL."""
    return "://" not in target and not target.startswith("env:")


# -- what is shown ---------------------------------------------------------------------------


class _Shown:
    """How far it is: one moving line in a terminal, a plain line now and then in a pipe."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._is_drawn = False
        self._last = monotonic()

    def __call__(self, progress: Progress) -> None:
        if self._screen.json:
            return
        text = f"{progress.table}: {plural(progress.source_rows, 'row')} compared"
        if progress.differing:
            text += f", {count(progress.differing)} differ"
        if self._screen.live:
            self._is_drawn = True
            self._screen.terminal.write(f"\r\x1b[K{printable(text)}")
            self._screen.terminal.flush()
        elif monotonic() - self._last >= _LINES_EVERY_S:
            self._last = monotonic()
            self._screen.say(text)

    def close(self) -> None:
        """Leave a clean line."""
        if self._is_drawn:
            self._screen.terminal.write("\r\x1b[K")
            self._screen.terminal.flush()


def _show_repair(screen: Screen, one: Repaired) -> None:
    if one.refused is not None:
        screen.say(f"{one.target}: not repaired: {one.refused}")
    elif one.verdict is not None and not one.verdict.equal:
        screen.say(
            f"{one.verdict.target}: repaired; {_counts(one.verdict)} before;"
            f" {plural(one.deleted, 'row')} deleted, {count(one.written)} written"
        )


def show_verdict(screen: Screen, verdict: Verdict, *, most: int) -> None:
    """One table: a line where it is equal, else what differs."""
    if screen.json:
        screen.out(json.dumps(_as_json(verdict), ensure_ascii=False))
        return
    name = verdict.source
    if verdict.target.rpartition(".")[2] != name.rpartition(".")[2]:
        name = f"{name} -> {verdict.target}"
    if verdict.equal:
        screen.out(printable(f"{name}: equal, {plural(verdict.source_rows, 'row')}"))
        return
    screen.out(printable(f"{name}: differs; {_counts(verdict)}"), style="bold")
    for line in verdict.structure:
        screen.out(printable(f"  {line}"))
    if not verdict.located:
        screen.out("  rows that have no key differ; which ones, their hash does not tell")
    for difference in verdict.differences:
        for line in _lines(difference):
            screen.out(printable(f"  {line}"))
    rest = verdict.changed + verdict.missing + verdict.surplus - len(verdict.differences)
    if rest > 0 and len(verdict.differences) >= most:
        screen.out(f"  and {count(rest)} more")


def _counts(verdict: Verdict) -> str:
    parts = [
        f"{count(number)} {word}"
        for number, word in (
            (verdict.changed, "changed"),
            (verdict.missing, "missing"),
            (verdict.surplus, "surplus"),
        )
        if number
    ]
    rows = f"{plural(verdict.source_rows, 'row')} in the source, {count(verdict.target_rows)} in"
    return f"{', '.join(parts)}{'; ' if parts else ''}{rows} the target"


def _lines(difference: Difference) -> list[str]:
    key = ", ".join(f"{name}={_shown(value)}" for name, value in difference.key.items())
    head = f"{difference.change}  {key}"
    if not difference.values:
        columns = f"  in {', '.join(difference.columns)}" if difference.columns else ""
        return [head + columns]
    return [
        head,
        *(
            f"    {name}: {_shown(one)} in the source, {_shown(other)} in the target"
            for name, (one, other) in difference.values.items()
        ),
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "NULL"
    return f"x'{value.hex()}'" if isinstance(value, bytes) else str(value)


def _as_json(verdict: Verdict) -> Mapping[str, Any]:
    return {
        "source": verdict.source,
        "target": verdict.target,
        "equal": verdict.equal,
        "source_rows": verdict.source_rows,
        "target_rows": verdict.target_rows,
        "structure": verdict.structure,
        "changed": verdict.changed,
        "missing": verdict.missing,
        "surplus": verdict.surplus,
        "located": verdict.located,
        "differences": [_difference(one) for one in verdict.differences],
    }


def _difference(one: Difference) -> Mapping[str, Any]:
    key = {n: v.hex() if isinstance(v, bytes) else v for n, v in one.key.items()}
    found: dict[str, Any] = {"change": one.change, "key": key, "columns": one.columns}
    if one.values:
        found["values"] = {
            name: {"source": left, "target": right} for name, (left, right) in one.values.items()
        }
    return found
