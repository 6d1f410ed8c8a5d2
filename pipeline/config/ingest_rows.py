"""The sections of an ingest's file that read rows: a SQL database, or a function."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from pipeline.config.job_part import Function, Part, VariableName
from pipeline.config.units import Seconds
from pipeline.masking import is_secret_name

DatabaseKind = Literal["postgresql", "sqlite"]
_AUTHORITY = re.compile(r"[^/?#]*")
_HAS_NO_PORT = re.compile(r":(?!\d*(,|$))(?![^\[]*\])")
"""A colon before something that is no port: a password with a slash in it, and no `@` after."""
_NOT_VALID = (
    "is not a valid address: encode characters of the password such as @ as %40, / as %2F, # as "
    "%23, ? as %3F, [ as %5B and ] as %5D"
)


def database_kind(url: str) -> DatabaseKind:
    """Return the kind of the database that an address names. Errors do not show the address.

    Raises:
        ValueError: It names none that can be read, or has unencoded characters in its password.
    """
    scheme, colon, rest = url.strip().partition(":")
    if colon and scheme == "sqlite" and rest.strip("/"):
        return "sqlite"
    if colon and scheme in ("postgresql", "postgres") and rest.startswith("//"):
        authority = _AUTHORITY.match(rest[2:])
        assert authority is not None, "the pattern fits everything"
        user, _, hosts = authority[0].rpartition("@")
        path = rest[2 + len(authority[0]) :].partition("?")[0]
        if set("@[]") & set(user) or "@" in path or _HAS_NO_PORT.search(hosts):
            raise ValueError(_NOT_VALID)
        try:
            urlsplit(url.strip())
        except ValueError:
            raise ValueError(_NOT_VALID) from None
        return "postgresql"
    if scheme in ("mysql", "mariadb"):
        raise ValueError(
            "names MySQL, which is not read: its drivers hold a whole result in memory; ingest "
            "files that it exports, or a function that yields its rows (source)"
        )
    raise ValueError(
        "names no database that can be read: use postgresql://user@host/database, or sqlite:FILE"
    )


def secrets_of(url: str) -> list[str]:
    """Return the passwords in an address of PostgreSQL, as they are written and as they are."""
    parts = urlsplit(url)
    named = [value for name, value in parse_qsl(parts.query) if is_secret_name(name)]
    return [secret for secret in (parts.password, unquote(parts.password or ""), *named) if secret]


def _public_url(url: str) -> str:
    if database_kind(url) == "postgresql" and secrets_of(url):
        raise ValueError(
            "has a password in it, which this file must not hold: name a variable that holds the "
            "address, as url: {env: SHOP_DATABASE}"
        )
    return url


class DatabaseUrl(Part):
    """The address of the database."""

    key: ClassVar[str] = "sql.url"
    """Key of this section, for messages."""

    value: Annotated[str, AfterValidator(_public_url)] | None = None
    """The address itself, without a password, e.g. `sqlite:shop.db`. Instead of a section, `url`
    can be this text."""
    env: VariableName | None = None
    """Name of the environment variable that holds the address, with its password:
    `postgresql://user:password@host/database` with any parameter of libpq, or `sqlite:FILE`."""
    secret: Annotated[str, Field(min_length=1)] | None = None
    """Name of the Prefect Secret block that holds the address."""

    @property
    def where(self) -> str:
        """Place of the address, for messages."""
        return f"variable {self.env}" if self.env else f"Secret block {self.secret}"

    @model_validator(mode="after")
    def _one(self) -> Self:
        if [self.value, self.env, self.secret].count(None) != 2:
            raise ValueError("set one of `value`, `env` and `secret`: where the address is")
        return self


class Incremental(Part):
    """Reads only what is new since the last ingest of the same name into the output."""

    column: Annotated[str, Field(min_length=1)]
    """Column that only grows: a number, a date, a time, or text. Each ingest reads the rows with
    greater values than those that are published; a row without a value is an error."""
    lag: Annotated[Seconds, Field(gt=0)] | None = None
    """Time that rows may take to become visible, e.g. `5m`: rows whose time is less than this ago,
    by the clock of the database, are left to the next ingest. PostgreSQL only."""


def _table(text: str) -> str:
    if not re.fullmatch(r"[^.\x00]+(\.[^.\x00]+)?", text):
        raise ValueError(f"{text!r} is neither a table nor schema.table")
    return text


class Sql(Part):
    """The SQL database to read."""

    url: Annotated[
        DatabaseUrl,
        BeforeValidator(
            lambda value: {"value": value} if isinstance(value, str) else value,
            json_schema_input_type=str | DatabaseUrl,
        ),
    ]
    table: Annotated[str, AfterValidator(_table)] | None = None
    """Table or view, or `schema.table`, as the database stores the names."""
    query: Annotated[str, Field(min_length=1)] | None = None
    """Query that returns the rows, instead of a table."""
    split_by: Annotated[str, Field(min_length=1)] | None = None
    """Column of whole numbers, such as the key: its ranges are read by parallel queries, in one
    snapshot. Default: one query. SQLite reads one after the other."""
    connections: Annotated[PositiveInt, Field(le=32)] = 4
    """Maximum number of parallel queries with `split_by`."""
    incremental: Incremental | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise ValueError("set `table` or `query`: which rows are read")
        return self

    @property
    def rows(self) -> str:
        """Name of what is read, for messages."""
        return "the query (sql.query)" if self.table is None else f"table {self.table}"


def _no_secrets(values: dict[str, Any]) -> dict[str, Any]:
    for name in values:
        if is_secret_name(name):
            raise ValueError(
                f"{name!r} looks like a secret, which this file must not hold: let the function "
                "read it from the environment"
            )
    return values


class RowFunction(Part):
    """The function that yields the rows."""

    function: Function
    """Function, as `module:function`, in a module of `transforms.allow`. It yields, or returns a
    list of, dicts, lists of dicts, Polars frames, or Arrow tables and batches."""
    params: Annotated[dict[str, Any], AfterValidator(_no_secrets)] = Field(default={})
    """Parameters that the function is called with."""


def section_of_function(value: Any) -> Any:
    """Return the section that the name of a function stands for."""
    return {"function": value} if isinstance(value, str) else value
