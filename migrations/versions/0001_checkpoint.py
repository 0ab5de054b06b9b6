"""The checkpoint table: what each target remembers of the pipelines that load it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# MySQL has no key over texts of any length, and names of four columns share 3,072 bytes.
NAME = sa.Text().with_variant(mysql.VARCHAR(191), "mysql")
# SQLite has no timestamps: ISO 8601 text in UTC, as etl writes it.
MOMENT = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")


def upgrade() -> None:
    """Make ``etl_checkpoint``, the same table on both dialects.

    Only the type of ``updated_at`` differs. Positions and fingerprints are compared as text, so
    they are text on PostgreSQL too, not jsonb, which would reorder and reformat them.
    """
    op.create_table(
        "etl_checkpoint",
        sa.Column("pipeline", NAME, nullable=False, comment="name of the pipeline"),
        sa.Column("flow", NAME, nullable=False, comment="name of the flow in it"),
        sa.Column("sink", NAME, nullable=False, comment="target table, as the pipeline names it"),
        sa.Column("partition", NAME, nullable=False, comment="key range of the source"),
        sa.Column(
            "epoch",
            sa.BigInteger,
            nullable=False,
            comment="raised by each run that takes over; fences older runs",
        ),
        sa.Column(
            "position",
            sa.Text,
            comment="JSON array; resume after this; null: from the beginning",
        ),
        sa.Column(
            "complete",
            sa.Boolean,
            nullable=False,
            server_default=sa.false(),
            comment="a full read ended cleanly at this position",
        ),
        sa.Column(
            "generation",
            sa.BigInteger,
            nullable=False,
            server_default=sa.text("1"),
            comment="raised by each new load of a replaced table",
        ),
        sa.Column("fingerprint", sa.Text, comment="JSON; what the position depends on"),
        sa.Column(
            "batches",
            sa.BigInteger,
            nullable=False,
            server_default=sa.text("0"),
            comment="commits so far",
        ),
        sa.Column(
            "rows",
            sa.BigInteger,
            nullable=False,
            server_default=sa.text("0"),
            comment="rows written so far",
        ),
        sa.Column("run_id", sa.Text, comment="run that moved the position last"),
        sa.Column("holder", sa.Text, comment="JSON; process that runs it, or ran it last"),
        sa.Column("updated_at", MOMENT, nullable=False, comment="when the row changed last"),
        sa.PrimaryKeyConstraint("pipeline", "flow", "sink", "partition"),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        # MySQL commits at each of these, so a crash may leave some without their version.
        if_not_exists=op.get_context().dialect.name == "mysql" or None,
        schema=op.get_context().version_table_schema,
        comment="etl: how far each pipeline has loaded this database; see etl state show",
    )
