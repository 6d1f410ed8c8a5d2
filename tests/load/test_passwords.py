"""Where passwords come from, and that nothing of them is kept or shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import adbc_driver_manager
import pytest
from prefect.blocks.system import Secret

from pipeline.config.load_file import LoadFile, LoadInto, load_file_of
from pipeline.errors import ChunkmapError, LoadFileError, UsageError, is_transient
from pipeline.flows.load import secret_of
from pipeline.load.connect import open_destination
from pipeline.load.errors import DestinationError, DestinationUnavailableError, LoadFailedError
from pipeline.load.postgresql import PostgreSQL, PostgresSession

URI = "postgresql://loader@db.example.com/shop"


def file(**into: Any) -> LoadFile:
    values = {"uri": URI, "table": "t"} | into
    named = {f"into.{name}": value for name, value in values.items()}
    return load_file_of({"name": "x", "input.uri": "s3://b/out/", **named})


def into(**more: Any) -> LoadInto:
    return file(**more).into


def test_a_password_comes_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAREHOUSE", raising=False)
    with pytest.raises(DestinationError, match="variable WAREHOUSE is not set"):
        open_destination(into(password_env="WAREHOUSE"))
    monkeypatch.setenv("WAREHOUSE", "hush")
    database = open_destination(into(password_env="WAREHOUSE"))
    assert isinstance(database, PostgreSQL)
    assert database.password == "hush" and "hush" not in repr(database) + database.where


def test_a_password_comes_from_the_block_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = {"warehouse": Secret(value="hush"), "number": SimpleNamespace(get=lambda: 5)}

    def load(name: str) -> Any:
        if name not in blocks:
            raise ValueError(f"Unable to find block document named {name}")
        return blocks[name]

    monkeypatch.setattr(Secret, "load", load)
    assert secret_of(into()) is None
    assert secret_of(into(password_block="warehouse")) == "hush"
    with pytest.raises(UsageError, match="no Secret block other") as caught:
        secret_of(into(password_block="other"))
    assert "Blocks, Secret" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="holds no text"):
        secret_of(into(password_block="number"))


@pytest.mark.parametrize(
    ("uri", "more"),
    [
        ("postgresql://loader:hush@db.example.com/shop", {}),
        *((f"postgresql://loader:hush{odd}x@db.example.com/shop", {}) for odd in "#?/"),
        ("postgresql://loader@db.example.com/shop?password=hush", {}),
        (URI, {"password_env": "A", "password_block": "b"}),
        ("a.duckdb", {"password_env": "A"}),
    ],
)
def test_a_password_in_the_file_and_two_places_are_refused(uri: str, more: dict[str, str]) -> None:
    with pytest.raises(LoadFileError) as caught:
        file(uri=uri, **more)
    assert "hush" not in str(caught.value)


def test_a_port_is_no_password() -> None:
    assert file(uri="postgresql://loader@db.example.com:5432/shop?application_name=a@b")
    assert file(uri="postgresql://db.example.com:5432/shop?application_name=a@b")


def test_the_file_that_prefect_stores_has_no_password() -> None:
    assert "hush" not in file(password_block="warehouse").to_yaml()


@pytest.mark.parametrize(
    ("state", "kind", "hint"),
    [
        ("53100", LoadFailedError, "free space"),
        ("53200", LoadFailedError, "more resources"),
        ("57P01", DestinationUnavailableError, "load again"),
        ("57014", LoadFailedError, "statement_timeout"),
        ("08006", DestinationUnavailableError, "load again"),
        ("40P01", DestinationUnavailableError, "load again"),
        (None, DestinationUnavailableError, "load again"),
        ("42501", DestinationError, "GRANT"),
        ("25006", DestinationError, "primary"),
        ("23505", LoadFailedError, "constraint"),
        ("22003", LoadFailedError, "cast"),
    ],
)
def test_errors_of_the_server_have_a_next_step(
    state: str | None, kind: type[Exception], hint: str
) -> None:
    class Connection:
        def cursor(self) -> None:
            return None

    session = PostgresSession(PostgreSQL(URI, "hush"), Connection())
    text = "[libpq] ERROR:  it failed for hush"
    code = adbc_driver_manager.AdbcStatusCode.IO
    error = adbc_driver_manager.OperationalError(text, status_code=code, sqlstate=state)
    with pytest.raises(kind) as caught, session._errors():
        raise error
    found = caught.value
    assert isinstance(found, ChunkmapError)
    assert hint in (found.hint or "")
    assert "hush" not in found.message and "it failed" in found.message
    assert is_transient(found) == (kind is DestinationUnavailableError)
