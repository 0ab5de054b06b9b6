"""What a person is told of rows that an incremental read leaves out, in every dialect."""

from __future__ import annotations


def told_unseen(where: str, why: str) -> str:
    """The error where open transactions cannot be seen, and no ``settle`` bounds them."""
    return (
        f"{where}: {why}, so rows that commit late could be missed. Nothing was moved; give"
        " settle=timedelta(...) (etl copy: --settle SECONDS), longer than any writing transaction"
        " lasts"
    )


def told_later(where: str, cursor: str, count: int, more: str = "") -> str:
    """The note on rows whose time has not come: else they would be taken for copied.

    Args:
        more: What else is known of them.
    """
    return (
        f"{where}: rows whose {cursor!r} is later than now: {count}. Each is left out until"
        f" then{more}"
    )


def told_lower(where: str, cursor: str) -> str:
    """The note on a table that ends before the position."""
    return (
        f"{where}: its highest {cursor!r} is below the saved position, so its last rows were"
        " deleted, or it was emptied, restored or made anew. New rows up to that position are not"
        " read; --full (full=True), or etl state reset, reads all of them"
    )
