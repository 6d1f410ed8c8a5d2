"""Read the load file: which output goes into which table of which database, or to which endpoint.

    name: revenue
    input: {uri: s3://shop/revenue/}
    into:
      uri: postgresql://loader@db.example.com/shop
      table: finance.revenue

Instead of a table of a database, `into: {uri: "delta:s3://lake/revenue/"}` is a Delta table, and
`into: {uri: "https://api.example.com/revenue"}` an HTTP endpoint that gets the rows in batches.

A load file holds no password. PostgreSQL's own places for it work (`PGPASSWORD`, `~/.pgpass`, a
service file), and so do a variable or a Secret block of Prefect that the file names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from pipeline.config.file_examples import nested
from pipeline.config.http_auth import Auth, HeaderName, HeaderValue, names_secret, refuse_secrets
from pipeline.config.job_part import Part, VariableName
from pipeline.config.units import Seconds, Size
from pipeline.config.yaml_file import YamlFile, change_yaml, dump_yaml, parse_yaml, read_yaml
from pipeline.config.yaml_model import validate
from pipeline.errors import InvalidUriError, LoadFileError
from pipeline.masking import is_secret_name, names_user
from pipeline.uris import as_prefix, parse

Kind = Literal["duckdb", "postgresql", "delta", "http"]
DATABASES: frozenset[Kind] = frozenset({"duckdb", "postgresql"})
_DUCKDB_SUFFIXES = (".duckdb", ".ddb")
_LIBPQ_SCHEMES = ("postgresql", "postgres")


def kind_of(uri: str) -> Kind:
    """Return the kind of destination that a URI names.

    Raises:
        ValueError: It names none, or holds a password.
    """
    scheme, colon, rest = uri.partition(":")
    if uri.endswith(_DUCKDB_SUFFIXES) and "://" not in uri:
        return "duckdb"
    if colon and scheme == "duckdb" and rest.strip("/"):
        return "duckdb"
    if colon and scheme in _LIBPQ_SCHEMES and rest.startswith("//"):
        _refuse_password(uri)
        return "postgresql"
    if colon and scheme == "delta" and rest.strip("/"):
        _output(rest)
        return "delta"
    if colon and scheme in ("http", "https") and rest.startswith("//"):
        _refuse_secret_address(uri)
        return "http"
    raise ValueError(
        "names no destination: write duckdb:FILE, a path that ends in .duckdb, "
        "postgresql://user@host/database, delta:s3://bucket/table/, or the https:// address of an "
        "endpoint"
    )


_PASSWORD = re.compile(r"//[^@/]*:(?!\d*(?:[/?]|$))[^@]*@")
"""A password of any characters: with `/`, `?` or `#` in it, `urlsplit` finds none. Digits before a
slash are a port."""


def _refuse_password(uri: str) -> None:
    parts = urlsplit(uri)
    names = [name for name, _ in parse_qsl(parts.query) if is_secret_name(name)]
    if ":" in parts.netloc.rpartition("@")[0] or _PASSWORD.search(uri) or names:
        raise ValueError(
            "has a password in it, which would be stored and shown: set PGPASSWORD, ~/.pgpass, "
            "password_env or password_block instead"
        )


def _refuse_secret_address(uri: str) -> None:
    """Refuse the address of an endpoint that is none, or has a secret in it."""
    parts = urlsplit(uri)
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if names_user(uri) or any(map(names_secret, names)):
        raise ValueError(
            "has a secret in it, which would be stored and shown: name where it is in http.auth"
        )
    if not parts.hostname or parts.fragment:
        raise ValueError("is no address such as https://api.example.com/rows")


def delta_uri(uri: str) -> str:
    """Return the prefix of a Delta table: `delta:s3://lake/sales/`, or `delta:/data/sales`."""
    return as_prefix(parse(uri.removeprefix("delta:")).uri)


def duckdb_path(uri: str) -> Path:
    """Return the path of a DuckDB file: `duckdb:a.duckdb`, `duckdb:///tmp/a.duckdb`, or a path."""
    rest = uri.removeprefix("duckdb:")
    return Path(rest.removeprefix("//")).expanduser().absolute()


def split_table(text: str) -> tuple[str | None, str]:
    """Return schema and name of a table: `finance.revenue`, or `revenue` in the default schema."""
    schema, dot, name = text.partition(".")
    return (schema, name) if dot else (None, text)


def _database(uri: str) -> str:
    kind_of(uri)
    return uri


def _table(text: str) -> str:
    if not re.fullmatch(r"[^.\x00]+(\.[^.\x00]+)?", text):
        raise ValueError(f"{text!r} is neither a table nor schema.table")
    return text


def _output(uri: str) -> str:
    if names_user(uri):
        raise ValueError("a URI with credentials in it is not accepted: it would be stored")
    try:
        return parse(uri).uri
    except InvalidUriError as error:
        raise ValueError(str(error)) from None


class LoadInput(Part):
    """What is loaded."""

    uri: Annotated[str, AfterValidator(_output)]
    """URI of a published output."""
    version: PositiveInt | None = None
    """Number of a manifest, as `chunkmap history` lists them. Default: the current one when the
    load begins."""


class LoadRequests(Part):
    """How rows are sent to an HTTP endpoint."""

    format: Literal["ndjson", "array"] = "ndjson"
    """`ndjson`: a body has one JSON object per line. `array`: a body is one JSON array of
    objects."""
    rows: Annotated[PositiveInt, Field(le=100_000)] = 1000
    """Maximum number of rows of a request."""
    max_bytes: Annotated[Size, Field(le=256 * 2**20)] = 2**20
    """Maximum size of a request's body."""
    headers: Annotated[dict[HeaderName, HeaderValue], AfterValidator(refuse_secrets)] = Field(
        default={}
    )
    """Headers of each request, none of them secret."""
    auth: Auth | None = None
    requests_per_second: PositiveFloat | None = None
    """Maximum number of requests per second."""
    timeout: Annotated[Seconds, Field(gt=0)] = 30.0
    """Seconds to wait for the answer to a request."""
    retries: NonNegativeInt = 5
    """Number of retries of a request after a passing failure: no answer, 408, 409, 425,
    429, 500, 502, 503, 504."""
    max_wait: Seconds = 300.0
    """Maximum seconds that an answer may ask to wait (`Retry-After`)."""


class LoadInto(Part):
    """Where it is loaded."""

    uri: Annotated[str, AfterValidator(_database)]
    """Database: `duckdb:FILE`, a path that ends in `.duckdb`, or
    `postgresql://user@host/database` with any parameter of libpq, e.g. `?sslmode=verify-full`.
    Delta table: `delta:s3://bucket/table/` or `delta:/path/`. Endpoint: its `https://` address."""
    table: Annotated[str, AfterValidator(_table)] | None = None
    """Table of a database, or `schema.table`, as the database stores the names: upper and lower
    case are kept. The table is created if it does not exist; the schema is not."""
    mode: Literal["append", "replace", "merge"] = "append"
    """`append`: add the commits that the table lacks. `replace`: replace all rows by the current
    version, in one transaction. `merge`: like append, but rows of new commits replace rows of the
    table that have the same key."""
    key: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Columns that identify a row, for mode merge."""
    schema_: Literal["match", "widen"] = Field("match", alias="schema")
    """`match`: the table must have the columns of the output. `widen`: the table gets the columns
    that it lacks."""
    password_env: VariableName | None = None
    """Variable that holds the password."""
    password_block: Annotated[str, Field(min_length=1)] | None = None
    """Secret block of Prefect that holds the password."""
    http: LoadRequests = LoadRequests()

    @property
    def secret_block(self) -> str | None:
        """Secret block of Prefect that a load needs."""
        return self.password_block or (self.http.auth.secret if self.http.auth else None)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> LoadInto:
        kind = kind_of(self.uri)
        if kind in DATABASES and self.table is None:
            raise ValueError("a database needs `table`")
        if kind not in DATABASES and self.table is not None:
            raise ValueError("`table` names a table of a database; the URI is all that others need")
        if kind != "http" and self.http != LoadRequests():
            raise ValueError("`http` is for endpoints: uri: https://…")
        if kind != "postgresql" and (self.password_env or self.password_block):
            raise ValueError(_NO_PASSWORD[kind])
        if kind == "http" and (self.mode, self.schema_) != ("append", "match"):
            raise ValueError("an endpoint gets new rows only: `mode` and `schema` do not apply")
        if kind == "delta" and self.mode == "merge":
            raise ValueError("a Delta table is not merged into: use mode append or replace")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> LoadInto:
        if (self.mode == "merge") != bool(self.key):
            raise ValueError("mode merge needs `key`, and no other mode has one")
        if len(set(self.key)) < len(self.key):
            raise ValueError("`key` names a column twice")
        if self.password_env and self.password_block:
            raise ValueError("set `password_env` or `password_block`, not both")
        return self


_NO_PASSWORD = {
    "duckdb": "a DuckDB file has no password",
    "delta": "the keys of a Delta table in S3 are in the settings (s3), not in a password",
    "http": "name the token of an endpoint in `http.auth`",
}
"""Why a destination has no password, by its kind."""


class LoadFile(Part):
    """A load."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """Name of the load, for people."""
    input: LoadInput
    into: LoadInto

    def to_yaml(self) -> str:
        """Return the text of a file that loads to an equal load; defaults are left out."""
        return dump_yaml(self.model_dump(mode="json", by_alias=True, exclude_defaults=True))


def read_load_file(
    path: Path, options: Mapping[str, object], changes: Sequence[str] = ()
) -> LoadFile:
    """Read a load file.

    Args:
        path: The file; `-` is standard input.
        options: Values that replace those of the file, by dotted key.
        changes: Values to set or replace, such as `into.mode=replace`, in the syntax of YAML.

    Raises:
        LoadFileError: It is missing or wrong; the message names file and line.
    """
    file = change_yaml(read_yaml(path, LoadFileError), changes, "--set", LoadFileError)
    return validate(_with_options(file, options), LoadFile, LoadFileError)


def load_file_of(options: Mapping[str, object]) -> LoadFile:
    """Return a load from values by dotted key. Raises as `read_load_file`."""
    return validate(_with_options(YamlFile("load", {}, {}), options), LoadFile, LoadFileError)


def _with_options(file: YamlFile, options: Mapping[str, object]) -> YamlFile:
    given = nested({key: value for key, value in options.items() if value not in (None, ())})
    data = dict(file.data)
    for key, value in given.items():
        section = data.get(key)
        both = isinstance(value, dict) and isinstance(section, dict)
        data[key] = section | value if both else value
    return replace(file, data=data)


def parse_load_file(text: str, name: str = "load.yaml") -> LoadFile:
    """Read a load file's text; `name` is for messages. Raises as `read_load_file`."""
    return validate(parse_yaml(text, name, LoadFileError), LoadFile, LoadFileError)
