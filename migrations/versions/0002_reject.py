"""The table of bad rows: what a step or a table refused, kept to be sent again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# MySQL has no key over texts of any length, and names of four columns share 3,072 bytes.
NAME = sa.Text().with_variant(mysql.VARCHAR(191), "mysql")
MOMENT = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
LONG = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
# SQLite numbers rows by itself in a column that is declared INTEGER PRIMARY KEY, and only there.
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make ``etl_reject``, the same table on both dialects.

    A row is text, not jsonb: jsonb takes neither NUL characters nor bytes that are no UTF-8, and it
    is for rows that have such things that the table is there.
    """
    schema = op.get_context().version_table_schema
    op.create_table(
        "etl_reject",
        sa.Column(
            "id",
            NUMBER,
            sa.Identity(always=True),
            primary_key=True,
            comment="in the order in which rows were refused",
        ),
        sa.Column("pipeline", NAME, nullable=False, comment="name of the pipeline"),
        sa.Column("flow", NAME, nullable=False, comment="name of the flow in it"),
        sa.Column("sink", NAME, nullable=False, comment="target table that lacks the row"),
        sa.Column("partition", NAME, nullable=False, comment="key range of the source"),
        sa.Column("position", sa.Text, comment="JSON array; the position saved with the row"),
        sa.Column("ordinal", sa.BigInteger, nullable=False, comment="place in its batch"),
        sa.Column("step", sa.Text, nullable=False, comment="what refused the row"),
        sa.Column(
            "steps_left",
            sa.Integer,
            nullable=False,
            comment="steps that the row still has to pass; 0: the table refused it",
        ),
        sa.Column("reason", sa.Text, nullable=False, comment="why; holds no value of the row"),
        sa.Column("detail", LONG, comment="what the error says itself; may quote values"),
        sa.Column("column_name", sa.Text, comment="the column, where one is to blame"),
        sa.Column("sqlstate", sa.Text, comment="the database's error code"),
        sa.Column("row_key", sa.Text, comment="JSON; what identifies the row, where known"),
        sa.Column("row_data", LONG, nullable=False, comment="JSON; the row as it entered the step"),
        sa.Column(
            "tries",
            sa.Integer,
            nullable=False,
            server_default=sa.text("0"),
            comment="times that it was sent again in vain",
        ),
        sa.Column(
            "staged",
            sa.Boolean,
            nullable=False,
            server_default=sa.false(),
            comment="belongs to a load that is not published yet",
        ),
        sa.Column("run_id", sa.Text, comment="run that refused it last"),
        sa.Column("rejected_at", MOMENT, nullable=False, comment="when it was refused first"),
        sa.Column("tried_at", MOMENT, comment="when it was sent again last"),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        # MySQL commits at each of these, so a crash may leave some without their version.
        if_not_exists=op.get_context().dialect.name == "mysql" or None,
        schema=schema,
        comment="etl: rows that were refused; see etl rejects show",
    )
    context = op.get_context()
    if context.dialect.name == "mysql" and context.bind is not None:
        there = sa.inspect(context.bind).get_indexes("etl_reject")
        if any(index["name"] == "etl_reject_owner" for index in there):
            return
    op.create_index("etl_reject_owner", "etl_reject", ["pipeline", "flow", "sink"], schema=schema)
