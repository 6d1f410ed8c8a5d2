"""Choose the adapter of a database by its URI."""

from __future__ import annotations

from pipeline.config.load_file import LoadFile, LoadInto, duckdb_path, split_table
from pipeline.load.destination import Destination, TableName
from pipeline.load.loader import LoadRequest


def request_of(file: LoadFile) -> LoadRequest:
    """Return what a load file asks for."""
    into = file.into
    return LoadRequest(
        output=file.input.uri,
        table=TableName(*split_table(into.table)),
        mode=into.mode,
        key=into.key,
        widen=into.schema_ == "widen",
        version=file.input.version,
    )


def open_destination(into: LoadInto) -> Destination:
    """Return the database that a load file names; nothing is connected yet.

    Raises:
        ModuleNotFoundError: The database's package is not installed.
    """
    from pipeline.load.duckdb_file import DuckDBFile

    return DuckDBFile(duckdb_path(into.uri))
