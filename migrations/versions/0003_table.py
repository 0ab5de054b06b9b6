"""The table of tables: which of a target's tables etl has made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

MOMENT = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Make ``etl_table``: what ``etl copy`` may replace, and what it has still to finish."""
    op.create_table(
        "etl_table",
        sa.Column("name", sa.Text, nullable=False, comment="the table, quoted, with its schema"),
        sa.Column(
            "state",
            sa.Text,
            nullable=False,
            comment="made; or building: constraints are still to be added",
        ),
        sa.Column("pipeline", sa.Text, nullable=False, comment="pipeline that made it last"),
        sa.Column("made_at", MOMENT, nullable=False, comment="when"),
        sa.PrimaryKeyConstraint("name"),
        schema=op.get_context().version_table_schema,
        comment="etl: the tables that it made here",
    )
