"""Move data between databases: exact after any stop, bounded in memory, no value bent in silence.

The architecture, from the outside in; a lower part may import an upper one, never the other way:

- ``api``: the names of this package, loaded together when the first of them is used.
- ``errors``, ``batch``, ``policy``, ``rows``: values. What moves, and what can go wrong.
- ``connector``: what a source and a target database must offer.
- ``events``: what a run tells.
- ``flow``, ``stages``: descriptions of pipelines, and the functions that change rows.
- ``engine``: how a plan runs. It knows no dialect.
- ``pipeline``: a name, its flows, and the ways to run them.
- ``reading``: the rows of a stream in somebody's own ``async for``.
- ``databases``: one driver for each dialect, imported when it is first used.
- ``files``: CSV, JSON lines and Parquet, as sources and targets.
- ``verification``, ``repair``: whether two tables hold the same rows; rewriting those that differ.
- ``observe``, ``cli``: progress, and the command ``etl``.
- ``testing``: connectors in memory and tools to test pipelines with.

Importing ``etl`` opens nothing, reads no environment, and loads nothing: the command
handles signals before it loads the rest. No name of it loads a driver.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etl.api import *  # noqa: F403
    from etl.api import __all__ as __all__

    __version__: str
else:

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            metadata = import_module("importlib.metadata")
            try:
                return metadata.version("etl")
            except metadata.PackageNotFoundError:  # a checkout on the path, not installed
                return "unknown"
        if name == "__all__" or not name.startswith("__"):
            # Not by "from etl import api", which asks here for "api".
            api = import_module("etl.api")
            globals().update((each, getattr(api, each)) for each in ("__all__", *api.__all__))
            if name in globals():
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *import_module("etl.api").__all__})
