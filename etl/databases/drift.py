"""What is said of columns that the rows have and a table lacks, or the other way round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

REMEDY = (
    "add the column, leave it out of the rows, or let the sink do one of them:"
    ' schema_change="evolve" adds it, "ignore" leaves it out (etl copy: --schema-change)'
)


def told_unstaged(names: Sequence[str], label: str) -> str:
    """The error for columns that would be NULL in the rows that an earlier run has staged."""
    return (
        f"{label}: the rows have {_listed(names)}, which those that were loaded before them have"
        " not. Nothing of this group was written, and what was loaded stays; give every row the"
        " same columns, or, where the source has got one meanwhile, run with --full"
    )


def told_ignored(names: Sequence[str], label: str) -> list[str]:
    """The note on columns that are not written."""
    if not names:
        return []
    return [f"{label}: not written, because the table lacks it: {_listed(names)}"]


def told_added(names: Sequence[str], label: str) -> list[str]:
    """The note on columns that the table was given."""
    if not names:
        return []
    return [f"{label}: added to the table, with NULL in the rows that were there: {_listed(names)}"]


def told_lost(names: Sequence[str], label: str) -> list[str]:
    """The note on columns of the table that the source has not, or not any more."""
    if not names:
        return []
    return [f"{label}: not in the source, so new rows get the table's default: {_listed(names)}"]


def told_computed(names: Sequence[str], label: str) -> list[str]:
    """The note on columns that the table computes, whatever the rows hold."""
    if not names:
        return []
    return [f"{label}: not written, because the table computes it: {_listed(names)}"]


def told_merged(collations: Mapping[str, str], label: str) -> list[str]:
    """The note on a key by which rows that differ are one row in the table."""
    if not collations:
        return []
    names = ", ".join(f"{name!r} ({collation})" for name, collation in collations.items())
    note = (
        f"{label}: rows whose keys differ only in what the table's collation takes for the same"
        f" (upper and lower case, say) become one row: {names}"
    )
    return [note]


def _listed(names: Sequence[str]) -> str:
    return "column " + ", ".join(map(repr, names))
