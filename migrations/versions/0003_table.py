"""The table of tables: which of a target's tables etl has made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# MySQL has no key over texts of any length, and names of four columns share 3,072 bytes.
NAME = sa.Text().with_variant(mysql.VARCHAR(191), "mysql")
MOMENT = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Make ``etl_table``: what ``etl copy`` may replace, and what it has still to finish."""
    op.create_table(
        "etl_table",
        sa.Column("name", NAME, nullable=False, comment="the table, quoted, with its schema"),
        sa.Column(
            "state",
            sa.Text,
            nullable=False,
            comment="made; or building: constraints are still to be added",
        ),
        sa.Column("pipeline", NAME, nullable=False, comment="pipeline that made it last"),
        sa.Column("made_at", MOMENT, nullable=False, comment="when"),
        sa.PrimaryKeyConstraint("name"),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        # MySQL commits at each of these, so a crash may leave some without their version.
        if_not_exists=op.get_context().dialect.name == "mysql" or None,
        schema=op.get_context().version_table_schema,
        comment="etl: the tables that it made here",
    )
