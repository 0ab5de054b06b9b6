"""Options that every command takes, before or after its name; the edge where errors end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Annotated, Any, Concatenate, ParamSpec, cast

import typer

from etl.cli.failure import show_failure
from etl.cli.logs import show_logs
from etl.cli.screen import Screen
from etl.cli.sigterm import Terminated
from etl.errors import EXIT_SIGINT, EXIT_SIGTERM, ConfigError
from etl.secrets import holds_url_with_password

P = ParamSpec("P")

Json = Annotated[bool, typer.Option("--json", help="Data as JSON lines on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Say more on stderr.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show the whole chain of a failure.")]
ShowValues = Annotated[
    bool, typer.Option("--show-values", help="Let errors quote the values of rows.")
]

# Arguments that may be a database's URL; a password anywhere else would be kept or shown.
_URLS = frozenset({"url", "urls", "source_url", "target_url", "source", "target"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The options that stood before the command's name."""

    json: bool = False
    verbose: bool = False
    traceback: bool = False
    show_values: bool = False


def command(function: Callable[Concatenate[Screen, P], int]) -> Callable[..., int]:
    """Give a command the common options, a screen, and an end for its errors.

    What it raises becomes lines on stderr and the exit code.
    """

    def run(
        *,
        ctx: typer.Context,
        json: bool,
        verbose: bool,
        traceback: bool,
        show_values: bool,
        **given: Any,
    ) -> int:
        before = ctx.obj if isinstance(ctx.obj, Common) else Common()
        screen = Screen(
            json=json or before.json,
            verbose=verbose or before.verbose,
            traceback=traceback or before.traceback,
            show_values=show_values or before.show_values,
        )
        with screen.owning_stdout(), show_logs(screen):
            try:
                _refuse_passwords(given)
                return function(screen, **given)  # type: ignore[call-arg]  # typer fills them in
            except KeyboardInterrupt as stop:
                screen.say("stopped")
                return EXIT_SIGTERM if isinstance(stop, Terminated) else EXIT_SIGINT
            except (typer.Exit, typer.Abort):
                raise
            except Exception as error:
                return show_failure(screen, error)

    own = [*inspect.signature(function, eval_str=True).parameters.values()][1:]
    common = {
        "json": Json,
        "verbose": Verbose,
        "traceback": Traceback,
        "show_values": ShowValues,
    }
    context = Parameter("ctx", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    added = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in common.items()
    ]
    parameters = [context, *own, *added]
    run.__name__ = function.__name__
    run.__doc__ = function.__doc__
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    # typer reads a command's options from its signature.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _refuse_passwords(given: Mapping[str, Any]) -> None:
    """Refuse a URL with a password where a name belongs: names are kept in databases.

    Raises:
        ConfigError: There is one.
    """
    for name, value in given.items():
        texts: Sequence[Any] = cast("Any", value) if isinstance(value, list | tuple) else [value]
        if name not in _URLS and any(
            isinstance(text, str) and holds_url_with_password(text) for text in texts
        ):
            raise ConfigError(
                f"a URL with a password was given for {name.replace('_', '-')!r}, which takes none."
                " Nothing was done; see --help for the order of arguments"
            )
