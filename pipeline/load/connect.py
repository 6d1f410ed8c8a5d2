"""Choose how to load by the URI of the destination."""

from __future__ import annotations

import os

from pipeline.config.http_auth import Auth
from pipeline.config.load_file import (
    DATABASES,
    LoadFile,
    LoadInto,
    duckdb_path,
    kind_of,
    split_table,
)
from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from pipeline.load.destination import Destination, TableName
from pipeline.load.errors import DestinationError
from pipeline.load.loader import Loader, LoadRequest
from pipeline.load.records import Listener, Load
from pipeline.storage import Storage


def open_load(
    file: LoadFile,
    settings: Settings,
    storage: Storage,
    listen: Listener = lambda progress: None,
    secret: str | None = None,
) -> Load:
    """Return the load that a file describes, of the version that is current now.

    Args:
        file: The load file.
        settings: Where the output is.
        storage: The storage of these settings.
        listen: Called with the progress.
        secret: Password of the database or token of the endpoint, where the caller has it; else
            that of the variable that the file names.

    Raises:
        UsageError: The output or the file cannot be loaded.
        ModuleNotFoundError: A package of the destination is not installed.
    """
    kind = kind_of(file.into.uri)
    if kind in DATABASES:
        destination = open_destination(file.into, secret)
        return Loader.of(request_of(file), destination, settings, storage, listen)
    if kind == "delta":
        from pipeline.load.delta import DeltaLoad

        return DeltaLoad.of(file, settings, storage, listen)
    from pipeline.load.endpoint import EndpointLoad

    auth = file.into.http.auth
    secret = secret or (_secret(auth) if auth is not None else None)
    return EndpointLoad.of(file, settings, storage, listen, secret=secret)


def _secret(auth: Auth) -> str:
    if auth.env is None:
        raise UsageError(
            f"the secret is in the Prefect Secret block {auth.secret} (into.http.auth.secret), "
            "which only a flow can read",
            hint="set PREFECT_API_URL (`chunkmap up` starts a server), or name a variable in "
            "into.http.auth.env",
        )
    return auth.checked(os.environ.get(auth.env))


def request_of(file: LoadFile) -> LoadRequest:
    """Return what a load file asks of a database."""
    into = file.into
    assert into.table is not None, "a database has a table"
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
