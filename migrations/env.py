"""Alembic's environment for the tables that etl keeps; ``etl.databases.migrate`` drives it.

It reads no ini file and leaves logging alone. What it needs comes in the attributes of the
configuration: ``connection``, which is in a transaction and holds the lock, and ``schema``. An
offline run (``etl migrate URL --sql``) has neither.
"""

from __future__ import annotations

from alembic import context

# Users have an alembic_version of their own, possibly in the same schema.
VERSION_TABLE = "etl_version"

attributes = context.config.attributes

if context.is_offline_mode():
    context.configure(
        dialect_name=attributes["dialect"],
        version_table=VERSION_TABLE,
        literal_binds=True,
        # The script says BEGIN and COMMIT around all of it, on SQLite too.
        transactional_ddl=True,
    )
else:
    context.configure(
        connection=attributes["connection"],
        version_table=VERSION_TABLE,
        version_table_schema=attributes["schema"],
        transactional_ddl=True,
    )

with context.begin_transaction():
    context.run_migrations()
