"""``etl check``: what stands between a database and a run."""

from __future__ import annotations

from collections.abc import Sequence

from etl.cli.failure import show_failure
from etl.cli.render import show_findings
from etl.cli.screen import Screen
from etl.databases.database import Database, driver_of
from etl.errors import EXIT_DONE, EXIT_FAILED, EtlError


async def check_all(screen: Screen, urls: Sequence[str]) -> int:
    """Check each database, also after one that failed; the first failure's exit code."""
    code = EXIT_DONE
    for text in urls:
        try:
            database = Database(text)
            findings = await driver_of(database.url).check(database.url)
        except EtlError as error:
            code = code or show_failure(screen, error)
        else:
            show_findings(screen, database.name, findings)
            if any(finding.state == "error" for finding in findings):
                code = code or EXIT_FAILED
    return code
