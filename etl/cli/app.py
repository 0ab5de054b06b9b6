"""The commands of ``etl``: their options, and what they hand on."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.main import get_command

import etl
from etl.batch import MAIN_PARTITION
from etl.cli.options import Common, Json, ShowValues, Traceback, Verbose, command
from etl.cli.screen import Screen
from etl.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, ConfigError, EtlError
from etl.figures import plural

app = typer.Typer(
    name="etl",
    help="Move data between databases. Stop it any time; run it again, and it goes on.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=(
        "Data goes to stdout, everything else to stderr. Exit codes: 0 done; 1 failed; 2 usage or"
        " set-up; 3 done, with rejected or skipped rows; 4 another run is active; 75 temporary, run"
        " it again; 130 and 143 stopped by Ctrl-C or SIGTERM, run it again to go on."
    ),
)
state_app = typer.Typer(
    help="Show, set or forget the positions that a target keeps.", no_args_is_help=True
)
app.add_typer(state_app, name="state")
rejects_app = typer.Typer(
    help="Show the rows that were refused, or send them again.", no_args_is_help=True
)
app.add_typer(rejects_app, name="rejects")

Jobs = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Key ranges of a full read that go on at once."),
]
Processes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="In how many worker processes, where functions see the rows. Default: as --jobs.",
    ),
]
Flows = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Flows (tables of a copy) that go on at once."),
]
Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory for rows in flight, such as 256MiB.")
]
Drain = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Time to finish after a first Ctrl-C; then roll back."),
]
AcceptChange = Annotated[
    bool,
    typer.Option(
        "--accept-change", help="Keep the positions although source, key or target changed."
    ),
]
TakeOver = Annotated[
    bool,
    typer.Option(
        "--take-over", help="Start although another run of it is active; that one is fenced off."
    ),
]
OnErrorOption = Annotated[
    Literal["fail", "skip", "reject"] | None,
    typer.Option(help="What becomes of bad rows; reject keeps them in etl_reject of the target."),
]
AllowRejects = Annotated[
    int,
    typer.Option(metavar="N", min=0, help="Exit with 0 where at most so many rows were bad."),
]
Full = Annotated[bool, typer.Option("--full", help="Read everything again from the beginning.")]
AllowLossy = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TABLE.COLUMN",
        help="Let values of this column be rounded, cut, or lose their zone; repeat it.",
    ),
]
PipelineFile = Annotated[
    str, typer.Argument(metavar="FILE[:NAME]", help="A Python file, and which pipeline in it.")
]
TargetUrl = Annotated[
    str, typer.Argument(metavar="URL", help="The target database; env:NAME reads a variable.")
]


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line; return the exit code."""
    try:
        code = get_command(app).main(args=list(arguments), prog_name="etl", standalone_mode=False)
    except typer.TyperException as error:
        return _usage(error)
    except typer.Abort:
        Screen().say("nothing was changed")
        return EXIT_FAILED
    return code if isinstance(code, int) else EXIT_DONE


def _usage(error: typer.TyperException) -> int:
    """A wrong command line: one line, and where to read more."""
    screen = Screen()
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        for line in error.format_message().split("\n"):
            screen.say(line)
        return EXIT_USAGE
    path = context.command_path if context is not None else "etl"
    message = " ".join(error.format_message().split()).rstrip(".").replace(" Value error,", "")
    screen.error(f"{message}; see {path} --help")
    return EXIT_USAGE


def _show_version(asked: bool) -> None:
    if asked:
        Screen().out(f"etl {etl.__version__}, Python {sys.version.split()[0]}")
        raise typer.Exit


@app.callback()
def _common(
    ctx: typer.Context,
    *,
    json: Json = False,
    verbose: Verbose = False,
    traceback: Traceback = False,
    show_values: ShowValues = False,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    ctx.obj = Common(json=json, verbose=verbose, traceback=traceback, show_values=show_values)


@app.command()
@command
def run(
    screen: Screen,
    target: PipelineFile,
    *,
    full: Full = False,
    memory: Memory = None,
    jobs: Jobs = None,
    processes: Processes = None,
    flows: Flows = None,
    drain: Drain = None,
    accept_change: AcceptChange = False,
    take_over: TakeOver = False,
    on_error: OnErrorOption = None,
    allow_rejects: AllowRejects = 0,
) -> int:
    """Run a pipeline.

    Ctrl-C once finishes what was read and stops; twice rolls back what is not committed. Either
    way the next run goes on from there.
    """
    from etl.cli.discover import find_pipeline
    from etl.cli.running import RunOptions, run_pipeline

    options = RunOptions(
        full=full,
        accept_change=accept_change,
        take_over=take_over,
        memory=memory,
        jobs=jobs,
        processes=processes,
        flows=flows,
        drain_s=drain,
        on_error=on_error,
        allow_rejects=allow_rejects,
    )
    return run_pipeline(find_pipeline(target), options, screen)


@app.command("list")
@command
def list_pipelines(
    screen: Screen,
    place: Annotated[
        Path, typer.Argument(metavar="[FILE or DIR]", help="Where to look.", show_default=True)
    ] = Path("pipelines"),
) -> int:
    """List the pipelines in a file or folder."""
    from etl.cli.discover import files_in, load, pipelines_in
    from etl.cli.render import show_pipelines
    from etl.pipeline import Pipeline

    code = EXIT_DONE
    found: list[tuple[str, Pipeline]] = []
    for path in files_in(place):
        try:
            module = load(path)
        except EtlError as error:
            # One broken file does not hide the others.
            screen.error(str(error))
            code = error.exit_code
        else:
            found += [(f"{path}:{name}", p) for name, p in pipelines_in(module).items()]
    show_pipelines(screen, found)
    if not found and code == EXIT_DONE:
        screen.say(f"no pipelines in {place}")
    return code


@app.command()
@command
def plan(
    screen: Screen,
    target: PipelineFile,
    *,
    memory: Memory = None,
    jobs: Jobs = None,
    processes: Processes = None,
    flows: Flows = None,
    connect: Annotated[
        bool,
        typer.Option(
            "--connect", help="Look at the databases too: the path of each flow, each column's way."
        ),
    ] = False,
) -> int:
    """Show what a run would do.

    Its flows and channels, the memory that they share, and how an interrupted run resumes. Connects
    to nothing without --connect, and writes nothing with it.
    """
    from etl.cli.discover import find_pipeline
    from etl.cli.render import show_plan
    from etl.cli.running import RunOptions

    pipeline = find_pipeline(target)
    options = RunOptions(memory=memory, jobs=jobs, processes=processes, flows=flows)
    limits = options.limits(pipeline.limits)
    show_plan(screen, pipeline.name, pipeline.plan(limits).explain())
    if not connect:
        return EXIT_DONE
    from etl.cli.foretell import foretell

    return foretell(screen, pipeline, options)


@app.command()
@command
def copy(
    screen: Screen,
    source_url: Annotated[
        str, typer.Argument(metavar="SOURCE_URL", help="Where to read: a database, or a file.")
    ],
    target_url: Annotated[
        str,
        typer.Argument(
            metavar="TARGET_URL", help="Where to write: a database, a file, or a folder/."
        ),
    ],
    *,
    table: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A table, or a pattern with * and ?; repeat it. Default: all."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Not this table or pattern; repeat it."),
    ] = None,
    schema: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only tables of this schema; repeat it."),
    ] = None,
    target_schema: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write all tables into this schema.")
    ] = None,
    views: Annotated[bool, typer.Option("--views", help="Copy views too, as tables.")] = False,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Only the rows of one table that meet this.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="At most N rows of each table.")
    ] = None,
    rename: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Another name in the target.")
    ] = None,
    mode: Annotated[
        Literal["replace", "append", "upsert"], typer.Option(help="What happens to rows there.")
    ] = "replace",
    key: Annotated[
        str | None,
        typer.Option(metavar="COL,COL", help="What identifies a row. Default: the primary key."),
    ] = None,
    cursor: Annotated[
        str | None,
        typer.Option(metavar="COL,COL", help="Copy only what is new, by a column that grows."),
    ] = None,
    settle: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="With --cursor: leave younger rows for the next run."
        ),
    ] = None,
    swap: Annotated[
        Literal["rename", "rewrite"],
        typer.Option(help="How replace puts the new rows in place; rewrite keeps the old table."),
    ] = "rename",
    force: Annotated[
        bool, typer.Option("--force", help="Replace tables with rows that etl did not make, too.")
    ] = False,
    schema_change: Annotated[
        Literal["freeze", "evolve", "ignore"],
        typer.Option(help="Columns that a table there lacks: refuse the copy, add them, or not."),
    ] = "freeze",
    snapshot: Annotated[
        Literal["run", "table"],
        typer.Option(help="Read all PostgreSQL tables at one instant, or each at its own."),
    ] = "run",
    publish: Annotated[
        Literal["run", "table"],
        typer.Option(help="Replace all tables together at the end, or each when it is in."),
    ] = "run",
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Keep the positions under this name.")
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(metavar="CHAR", help="Between the fields of a CSV file. Default: a comma."),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a CSV file. Default: utf-8.")
    ] = None,
    null: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What NULL is in a CSV file. Default: nothing at all."),
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORM", help="Of files in a folder: csv, jsonl, parquet, csv.gz."
        ),
    ] = None,
    full: Full = False,
    memory: Memory = None,
    jobs: Jobs = None,
    flows: Flows = None,
    drain: Drain = None,
    accept_change: AcceptChange = False,
    take_over: TakeOver = False,
    on_error: OnErrorOption = None,
    allow_rejects: AllowRejects = 0,
    allow_lossy: AllowLossy = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would become of each column; write nothing."),
    ] = False,
    verify_after: Annotated[
        bool, typer.Option("--verify", help="Compare source and target when the copy is done.")
    ] = False,
) -> int:
    """Copy tables from one database to another, all together.

    A table that the target lacks is made from the source's columns. URLs are
    postgresql://user:password@host/database, sqlite:///file.db, or env:NAME. Either side may be a
    file of one table: .csv, .tsv, .jsonl, also with .gz, .bz2 or .xz, or .parquet. A target may be
    a folder, which gets a file for each table.
    """
    from etl.cli.copy import CopyOptions, plan_copy
    from etl.cli.copyfile import (
        FileOptions,
        database_of,
        is_folder,
        plan_copy_to_files,
        plan_file_copy,
        plan_file_to_file,
    )
    from etl.cli.foretell import foretell
    from etl.cli.running import RunOptions, run_pipeline
    from etl.files.file import is_file

    if verify_after and (where is not None or limit is not None):
        raise ConfigError("--verify compares whole tables; it does not go with --where or --limit")
    what = CopyOptions(
        tables=tuple(table or ()),
        exclude=tuple(exclude or ()),
        schemas=tuple(schema or ()),
        target_schema=target_schema,
        views=views,
        where=where,
        limit=limit,
        force=force,
        rename=rename,
        mode=mode,
        key=_columns(key, "--key"),
        cursor=_columns(cursor, "--cursor"),
        settle_s=settle,
        swap=swap,
        schema_change=schema_change,
        name=name,
        lossy=tuple(allow_lossy or ()),
        snapshot=snapshot,
        publish=publish,
    )
    options = RunOptions(
        full=full,
        accept_change=accept_change,
        take_over=take_over,
        memory=memory,
        jobs=jobs,
        flows=flows,
        drain_s=drain,
        on_error=on_error,
        allow_rejects=allow_rejects,
    )
    form = FileOptions(delimiter=delimiter, encoding=encoding, null=null, format=file_format)
    to_files = is_file(target_url) or is_folder(target_url)
    if verify_after and (to_files or is_file(source_url)):
        raise ConfigError("--verify compares databases; it does not go with files")
    if is_file(source_url):
        if to_files:
            pipeline = plan_file_to_file(source_url, target_url, what, form)
        else:
            pipeline = plan_file_copy(source_url, database_of(target_url), what, form)
        if dry_run:
            return foretell(screen, pipeline, options)
        return run_pipeline(pipeline, options, screen)
    if verify_after:
        from etl.cli.verify import refuse_unhashed

        refuse_unhashed(database_of(source_url), database_of(target_url))
    if to_files:
        copy = asyncio.run(plan_copy_to_files(database_of(source_url), target_url, what, form))
    else:
        form.refuse()
        copy = asyncio.run(plan_copy(database_of(source_url), database_of(target_url), what))
    for line in copy.said:
        screen.say(line)
    if dry_run:
        return foretell(screen, copy.pipeline, options)
    code = run_pipeline(copy.pipeline, options, screen)
    if not verify_after or code != EXIT_DONE:
        return code
    from etl.cli.verify import verify_pipeline
    from etl.verification import Pair

    like = Pair(source="", target="", key=what.key)
    return asyncio.run(verify_pipeline(screen, copy.pipeline, like))


@app.command()
@command
def verify(
    screen: Screen,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE_URL or FILE[:NAME]", help="What was copied.")
    ],
    target_url: Annotated[
        str | None, typer.Argument(metavar="[TARGET_URL]", help="Where it was copied to.")
    ] = None,
    *,
    table: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A table; repeat it for several. Default: all."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Not this table or pattern; repeat it."),
    ] = None,
    schema: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only tables of this schema; repeat it."),
    ] = None,
    target_schema: Annotated[
        str | None, typer.Option(metavar="NAME", help="All copies are in this schema.")
    ] = None,
    rename: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Its name in the target.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="COL,COL", help="What identifies a row. Default: the primary key."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Compare only rows for which both sides hold this true."),
    ] = None,
    values: Annotated[
        bool, typer.Option("--values", help="Print the values that differ, not only where.")
    ] = False,
    limit: Annotated[
        int, typer.Option(metavar="ROWS", min=0, help="Differences that are listed for a table.")
    ] = 100,
    repair: Annotated[
        bool, typer.Option("--repair", help="Rewrite the rows that differ, then compare again.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The copy's name, if it was given one.")
    ] = None,
) -> int:
    """Compare tables with their copies, by hashes that the databases compute.

    Ends with 0 where all are equal, with 1 where a row or a column differs. Changes nothing
    without --repair.
    """
    from etl.cli.copy import CopyOptions
    from etl.cli.discover import find_pipeline
    from etl.cli.verify import is_file, verify_copy, verify_pipeline
    from etl.databases.database import Database
    from etl.verification import Pair

    columns = _columns(key, "--key")
    like = Pair(source="", target="", key=columns, where=where, values=values, most=limit)
    if target_url is None:
        if not is_file(source):
            raise ConfigError("etl verify takes two URLs, or the file of a pipeline")
        if table or exclude or schema or target_schema or rename is not None or name is not None:
            raise ConfigError("names of tables go with two URLs; a pipeline has its own")
        pipeline = find_pipeline(source)
        return asyncio.run(verify_pipeline(screen, pipeline, like, repair=repair))
    options = CopyOptions(
        tables=tuple(table or ()),
        exclude=tuple(exclude or ()),
        schemas=tuple(schema or ()),
        target_schema=target_schema,
        rename=rename,
        mode="append",  # which no table of the target stands in the way of
        key=columns,
        name=name,
    )
    return asyncio.run(
        verify_copy(screen, Database(source), Database(target_url), options, like, repair=repair)
    )


@state_app.command("show")
@command
def state_show(
    screen: Screen,
    url: TargetUrl,
    pipeline: Annotated[str | None, typer.Argument(help="Only this pipeline's.")] = None,
) -> int:
    """Show the positions that a target keeps."""
    from etl.cli.render import show_states
    from etl.cli.state import read_states
    from etl.databases.database import Database

    database = Database(url)
    states = asyncio.run(read_states(database, pipeline))
    if states:
        show_states(screen, states)
    else:
        whose = f"of pipeline {pipeline!r} " if pipeline is not None else ""
        screen.say(f"{database.name} keeps no positions {whose}yet")
    return EXIT_DONE


@state_app.command("set")
@command
def state_set(
    screen: Screen,
    url: TargetUrl,
    pipeline: str,
    flow: str,
    sink: str,
    position: Annotated[str, typer.Argument(metavar="POSITION_JSON", help="Array or null.")],
    *,
    partition: Annotated[str, typer.Option(help="The partition.")] = MAIN_PARTITION,
) -> int:
    """Set one position: the next run reads what comes after it. Fences a run that is active."""
    from etl.cli.state import parse_position, set_state
    from etl.connector import CheckpointKey
    from etl.databases.database import Database

    to = parse_position(position)
    key = CheckpointKey(pipeline=pipeline, flow=flow, sink=sink, partition=partition)
    asyncio.run(set_state(Database(url), key, to))
    screen.say("the position is set")
    return EXIT_DONE


@state_app.command("reset")
@command
def state_reset(
    screen: Screen,
    url: TargetUrl,
    pipeline: str,
    flow: Annotated[str | None, typer.Argument(help="Only this flow's.")] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> int:
    """Forget positions: the next run reads from the beginning. Tables stay as they are."""
    from etl.cli.render import show_states
    from etl.cli.state import read_states, reset_states
    from etl.databases.database import Database

    database = Database(url)
    states = [
        state
        for state in asyncio.run(read_states(database, pipeline))
        if flow is None or state.key.flow == flow
    ]
    whose = f"pipeline {pipeline!r}" + (f", flow {flow!r}" if flow is not None else "")
    if not states:
        raise ConfigError(f"{database.name} keeps no position of {whose}; nothing was changed")
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(
                f"{plural(len(states), 'position')} of {whose} would be forgotten;"
                " say --yes to do it"
            )
        show_states(screen, states)
        typer.confirm("Forget these positions?", abort=True, err=True)
    asyncio.run(reset_states(database, [state.key for state in states]))
    screen.say(
        f"forgotten: {plural(len(states), 'position')} of {whose};"
        " the next run reads from the beginning"
    )
    return EXIT_DONE


@rejects_app.command("show")
@command
def rejects_show(
    screen: Screen,
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE[:NAME]|URL", help="A pipeline, or a target database (env:NAME too)."
        ),
    ],
    *,
    values: Annotated[bool, typer.Option("--values", help="Show the rows themselves.")] = False,
) -> int:
    """Show the rows that were refused: when, by what, and why."""
    from etl.cli.rejects import read_rejects, show_rejects

    found = asyncio.run(read_rejects(target))
    if found or screen.json:
        show_rejects(screen, found, values=values)
    else:
        screen.say(f"{target} has no rejected rows")
    return EXIT_DONE


@rejects_app.command("retry")
@command
def rejects_retry(
    screen: Screen,
    target: PipelineFile,
    *,
    take_over: TakeOver = False,
) -> int:
    """Send the refused rows of a pipeline again, through today's code.

    Each enters at the step that refused it, and leaves etl_reject in the transaction that
    writes it. Rows that are refused again stay.
    """
    from etl.cli.rejects import retry_rejects

    return asyncio.run(retry_rejects(screen, target, take_over=take_over))


@app.command()
@command
def migrate(
    screen: Screen,
    url: TargetUrl,
    *,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL instead, and connect to nothing.")
    ] = False,
) -> int:
    """Make or update the tables that etl keeps.

    A run does it by itself where it has the right to make tables.
    """
    from etl.databases.database import Database
    from etl.databases.migrate import script, upgrade

    database = Database(url)
    if sql:
        for line in script(database.url.dialect).rstrip().split("\n"):
            screen.out(line)
        return EXIT_DONE
    asyncio.run(upgrade(database.url))
    screen.say(f"{database.name} is up to date")
    return EXIT_DONE


@app.command()
@command
def check(
    screen: Screen,
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="Databases to look at.")],
) -> int:
    """Check databases: version, rights, settings.

    It changes nothing.
    """
    from etl.cli.check import check_all

    return asyncio.run(check_all(screen, urls))


# A name in double quotes, with the quotes in it doubled, or one up to the next comma.
_COLUMN = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^,]*?))\s*,')


def _columns(text: str | None, option: str) -> tuple[str, ...]:
    """Names from ``a,b``; in double quotes one that holds a comma, or spaces at an end."""
    if text is None:
        return ()
    names = tuple(
        quoted.replace('""', '"') or plain for quoted, plain in _COLUMN.findall(f"{text},")
    )
    if "" in names:
        raise ConfigError(f"{option}: a column's name is empty in {text!r}; write {option} a,b")
    return names
