"""Run a check's query over Parquet files with DuckDB, which sees these files and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pipeline.errors import CheckError
from pipeline.quality.evaluate import Found
from pipeline.quality.results import MAX_EXAMPLES, examples_of

MEMORY: Final = "1GiB"
"""Memory of DuckDB, beyond which it uses the folder of the files."""


def rows_of(query: str, folder: Path) -> Found:
    """Count the rows that a query of the table `result` returns.

    Args:
        query: A single SELECT.
        folder: Folder with the Parquet files of `result`, all with the same columns; at least one.

    Raises:
        CheckError: DuckDB is not installed, or the query cannot be run.
    """
    duckdb = require_duckdb()
    try:
        with duckdb.connect(":memory:") as connection:
            _shut_in(connection, folder)
            return _count(duckdb, connection, query, folder)
    except duckdb.Error as error:
        raise CheckError(
            f"the query of a check cannot be run: {_first_line(error)}",
            hint="fix `query` in the job's checks.run; it is DuckDB's SQL over the table `result`",
        ) from error


def require_duckdb() -> Any:
    """Import DuckDB. Raises CheckError if it is not installed."""
    try:
        import duckdb
    except ImportError as error:
        raise CheckError(
            "checks of SQL need the package duckdb, which is not installed",
            hint="pip install 'chunkmap[checks]', where the driver runs",
        ) from error
    return duckdb


def _shut_in(connection: Any, folder: Path) -> None:
    """Let queries reach neither the network nor files outside of a folder."""
    connection.execute(f"SET memory_limit = '{MEMORY}'")
    connection.execute(f"SET temp_directory = '{_quoted(folder / 'temporary')}'")
    connection.execute(f"SET allowed_directories = ['{_quoted(folder)}']")
    for setting in (
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _count(duckdb: Any, connection: Any, query: str, folder: Path) -> Found:
    statements = connection.extract_statements(query)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise CheckError(
            "the query of a check is not a single SELECT",
            hint="fix `query` in the job's checks.run: it selects the rows that are wrong",
        )
    files = _quoted(folder / "*.parquet")
    connection.execute(f"CREATE VIEW result AS SELECT * FROM read_parquet('{files}')")
    select = query.strip().rstrip(";")
    connection.execute(f"CREATE TEMP TABLE chunkmap_found AS SELECT * FROM (\n{select}\n)")
    count = connection.execute("SELECT count(*) FROM chunkmap_found").fetchone()[0]
    cursor = connection.execute(f"SELECT * FROM chunkmap_found LIMIT {MAX_EXAMPLES}")
    found = [column[0] for column in cursor.description]
    rows = [dict(zip(found, row, strict=True)) for row in cursor.fetchall()]
    return Found(count, examples_of(rows))
