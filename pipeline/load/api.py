"""Load an output from a program or a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pipeline.config.load_file import load_file_of
from pipeline.config.settings import load_settings
from pipeline.load.connect import open_load
from pipeline.load.records import Listener, LoadProgress, LoadSummary
from pipeline.storage import open_storage


def _ignore(progress: LoadProgress) -> None:
    """Show nothing."""


def load_output(
    uri: str,
    into: str,
    table: str | None = None,
    *,
    mode: Literal["append", "replace", "merge"] = "append",
    key: str | Sequence[str] = (),
    schema: Literal["match", "widen"] = "match",
    version: int | None = None,
    password: str | None = None,
    listen: Listener = _ignore,
) -> LoadSummary:
    """Load what a destination lacks of an output; calling it again loads nothing twice.

    An endpoint gets rows at least once (see docs/guides/load.md).

    Args:
        uri: The output prefix.
        into: The destination: `duckdb:FILE`, a path that ends in `.duckdb`,
            `postgresql://user@host/database`, `delta:s3://bucket/table/`, or the address of an
            HTTP endpoint.
        table: Table of a database, or `schema.table`; it is created if it does not exist.
        mode: `append` adds the commits that the table lacks, `replace` replaces all rows in one
            transaction, `merge` replaces rows with the same key.
        key: Columns that identify a row, for mode `merge`.
        schema: Whether the table must have the output's columns, or gets those that it lacks.
        version: Number of a manifest; default the current.
        password: Password of the database's user; default PGPASSWORD, ~/.pgpass and the like.
            Endpoints with a token need a load file.
        listen: Called with the progress.

    Raises:
        DestinationError: The database cannot be reached with this address, user or password.
        TableMismatchError: The table has other columns.
        ReplacedCommitsError: Rows that the table has left the output (mode `append`).
        LoadFailedError: The database refuses the rows; the transaction was rolled back.
    """
    settings = load_settings()
    file = load_file_of(
        {
            "name": "load",
            "input.uri": uri,
            "input.version": version,
            "into.uri": into,
            "into.table": table,
            "into.mode": mode,
            "into.key": (key,) if isinstance(key, str) else tuple(key),
            "into.schema": schema,
        }
    )
    return open_load(file, settings, open_storage(settings), listen, password).run()
