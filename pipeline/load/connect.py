"""Choose the adapter of a database by its URI."""

from __future__ import annotations

import os

from pipeline.config.load_file import LoadFile, LoadInto, duckdb_path, kind_of, split_table
from pipeline.load.destination import Destination, TableName
from pipeline.load.errors import DestinationError
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


def open_destination(into: LoadInto, password: str | None = None) -> Destination:
    """Return the database that a load file names; nothing is connected yet.

    Args:
        into: Where to load.
        password: The password, where the caller has it; else that of `password_env`, if set.

    Raises:
        DestinationError: A variable with the password is not set.
        ModuleNotFoundError: The database's package is not installed.
    """
    if kind_of(into.uri) == "duckdb":
        from pipeline.load.duckdb_file import DuckDBFile

        return DuckDBFile(duckdb_path(into.uri))
    from pipeline.load.postgresql import PostgreSQL

    return PostgreSQL(into.uri, password or _password(into))


def _password(into: LoadInto) -> str | None:
    if into.password_env is None:
        return None
    password = os.environ.get(into.password_env)
    if not password:
        raise DestinationError(
            f"the variable {into.password_env} is not set (into.password_env)",
            hint="set it to the password of the database's user",
        )
    return password
