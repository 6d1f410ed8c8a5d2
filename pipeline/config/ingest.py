"""Load the file of an ingest: what becomes Parquet, and where.

    name: orders
    http:
      url: https://shop.example/api/orders
      params: {status: paid}
      auth: {header: Authorization, value: "Bearer {secret}", env: SHOP_TOKEN}
      records: data
      pages: {by: cursor, parameter: after, path: meta.next_cursor}
    window: {from: 2024-03-01, to: 2024-04-01, parameters: [created_from, created_to]}
    types: {created_at: "datetime[us, UTC]", total: "decimal[18, 2]"}
    output: {uri: s3://shop/orders/, mode: append}

Instead of `http` and `window`, `files: {uri: s3://shop/exports/2024-*.csv.gz}` reads files,
`sql: {url: {env: SHOP_DATABASE}, table: orders}` a database, and `source: module:function` what a
function yields. The file of an ingest holds no secret: `http.auth` and `sql.url` name where it is.
Requests that were answered are not made again when `schema`, `types`, limits, speeds or the format
of files change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

import polars as pl
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from partitioning.dtypes import parse_type
from partitioning.globs import has_magic
from pipeline.config.http_auth import Auth, HeaderName, HeaderValue, names_secret, refuse_secrets
from pipeline.config.ingest_rows import DatabaseUrl, RowFunction, Sql, section_of_function
from pipeline.config.job import CompressionText, Uri, check_uri, refuse_whole_bucket
from pipeline.config.job_part import Part
from pipeline.config.units import Seconds, Size
from pipeline.config.yaml_file import change_yaml, dump_yaml, parse_yaml, read_yaml
from pipeline.config.yaml_model import validate
from pipeline.errors import JobError
from pipeline.masking import names_user

MAX_WINDOWS = 10_000
"""Maximum number of steps that a window is cut into."""
Param = bool | int | float | str | date
_SCALARS = (pl.Boolean, pl.String, pl.Date, pl.Time, pl.Datetime, pl.Decimal)
_SIGNED = ("signature", "sig")
"""Ends of the names of parameters of signed URLs."""
_HAS_TIME = re.compile(r"%[-_0^#EO]*[HIklMSfpPrRsTXc+]")
_EPOCH = re.compile(r"(%%)|%[-_0^#EO]*s")
_PATH = r"^[^.]+(\.[^.]+)*$"

JsonPath = Annotated[str, Field(pattern=_PATH)]
"""Names of nested keys, joined by dots."""


def _address(value: str) -> str:
    if names_user(value):
        raise ValueError("an address must not hold credentials; name them in http.auth")
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value!r} is not an address such as https://shop.example/api/orders")
    if parts.query or parts.fragment:
        raise ValueError("an address without its query; parameters are in http.params")
    return value


def _type(text: str) -> str:
    _refuse_type(parse_type(text), text)
    return text


def _refuse_type(kind: pl.DataType, text: str) -> None:
    if isinstance(kind, pl.List):
        inner: Any = kind.inner
        if not (isinstance(inner, pl.Datetime) and inner.time_zone):
            return _refuse_type(inner, text)
    elif kind.is_integer() or kind.is_float() or isinstance(kind, _SCALARS):
        return None
    raise ValueError(
        f"{text!r} is no type that values of JSON are read as: use a number, boolean, string, "
        "date, "
        "time, datetime[us, UTC], decimal[18, 2], or a list of one of them without a time zone"
    )


SecretPlace = Auth | DatabaseUrl
"""Where a secret is: in a variable (`env`), or in a Prefect Secret block (`secret`)."""


class HttpAuth(Auth):
    """A header, or a query parameter, that holds a secret."""

    parameter: Annotated[str, Field(min_length=1)] | None = None
    """Query parameter that holds the secret, instead of a header."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.parameter is not None and self.model_fields_set & {"header", "value"}:
            raise ValueError("set `parameter`, or `header` and `value`")
        return self


class Pages(Part):
    """How one page leads to the next."""

    by: Literal["none", "page", "offset", "cursor", "link"] = "none"
    """`none`: there is one page. `page`: pages have numbers. `offset`: a page begins at a record.
    `cursor`: a page holds the cursor of the next. `link`: a page has the address of the next."""
    parameter: Annotated[str, Field(min_length=1)] | None = None
    """Query parameter of the number, offset or cursor. Default: `page`, `offset` or `cursor`."""
    path: JsonPath | None = None
    """Keys that lead to the next page's cursor, or address. Default for `link`: the Link header."""
    optional: bool = False
    """Whether the API leaves `path` out where there is one page only. Otherwise that is an error
    unless another page has it, or the page has no records."""
    first: NonNegativeInt = 1
    """Number of the first page."""
    size_parameter: Annotated[str, Field(min_length=1)] | None = None
    """Query parameter of the page size."""
    size: PositiveInt | None = None
    """Page size that is asked for."""
    total: JsonPath | None = None
    """Keys that lead to the number of records of all pages. Default: the last page is empty."""
    last: JsonPath | None = None
    """Keys that lead to the number of the last page."""

    @property
    def is_numbered(self) -> bool:
        """Whether a page can be requested without the page before it."""
        return self.by in ("page", "offset")

    @property
    def name(self) -> str:
        """Name of the query parameter."""
        return self.parameter or self.by

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.by == "cursor" and self.path is None:
            raise ValueError("`by: cursor` needs `path`: where a page has the cursor of the next")
        if self.optional and self.path is None:
            raise ValueError("`optional` needs `path`: what a page may lack")
        if self.path is not None and self.by not in ("cursor", "link"):
            raise ValueError(f"`path` does not go with `by: {self.by}`")
        if self.parameter is not None and self.by not in ("page", "offset", "cursor"):
            raise ValueError(f"`parameter` does not go with `by: {self.by}`")
        if (self.size is None) != (self.size_parameter is None):
            raise ValueError("set `size` and `size_parameter`, or neither")
        if self.total is not None and (self.size is None or not self.is_numbered):
            raise ValueError("`total` needs `by: page` or `offset`, and `size`")
        if self.last is not None and self.by != "page":
            raise ValueError("`last` needs `by: page`")
        return self


class Http(Part):
    """The HTTP API to read."""

    url: Annotated[str, AfterValidator(_address)]
    """Address of the records, without a query."""
    params: Annotated[dict[str, Param], AfterValidator(refuse_secrets)] = Field(default={})
    """Query parameters of each request."""
    headers: Annotated[dict[HeaderName, HeaderValue], AfterValidator(refuse_secrets)] = Field(
        default={}
    )
    """Headers of each request, none of them secret."""
    auth: HttpAuth | None = None
    records: JsonPath | None = None
    """Keys that lead to the list of records in a page. Default: the page is the list. Where it is
    an object, that is the only record."""
    pages: Pages = Pages()
    max_pages: PositiveInt = 10_000
    """Maximum number of pages; with more, the ingest fails and keeps what it has."""
    max_page_bytes: Size = 64 * 2**20
    """Maximum size of a page, decompressed."""
    concurrency: Annotated[PositiveInt, Field(le=256)] = 8
    """Maximum number of requests at a time: of numbered pages, and of the steps of a window."""
    requests_per_second: PositiveFloat | None = None
    """Maximum number of requests per second."""
    timeout: Annotated[Seconds, Field(gt=0)] = 30.0
    """Seconds to wait for the next bytes of an answer."""
    page_timeout: Annotated[Seconds, Field(gt=0)] = 300.0
    """Seconds in which an answer must have come as a whole."""
    retries: NonNegativeInt = 5
    """Number of retries of a request after a passing failure: no answer, 429, 5xx, a cut answer."""
    max_wait: Seconds = 300.0
    """Maximum seconds that an answer may ask to wait (`Retry-After`)."""


FileFormatName = Literal["csv", "ndjson", "json", "parquet", "arrow", "excel"]


def _uris(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def is_url(uri: str) -> bool:
    """Whether a file is named by a URL of HTTP."""
    return uri.lower().startswith(("http://", "https://"))


def _file(value: str) -> str:
    if not is_url(value):
        return check_uri(value)
    if names_user(value):
        raise ValueError("a URL must not hold credentials; files are read without any")
    parts = urlsplit(value)
    if not parts.hostname or parts.fragment or any(c.isspace() for c in value):
        raise ValueError(f"{value!r} is not a URL such as https://data.example/orders.csv")
    if has_magic(parts.path):
        raise ValueError("a URL names one file, without wildcards; give a list of URLs")
    for name, _ in parse_qsl(parts.query):
        if names_secret(name) or name.lower().endswith(_SIGNED):
            raise ValueError(
                f"{name!r} looks like a secret, which this file must not hold: copy the file to "
                "S3, and read it there"
            )
    return value


class Files(Part):
    """The files to read."""

    uri: Annotated[
        tuple[Annotated[str, AfterValidator(_file)], ...],
        BeforeValidator(_uris, json_schema_input_type=str | tuple[str, ...]),
        Field(min_length=1),
    ]
    """File, prefix that ends with a slash, or glob in S3 or on disk; or URL of a file, which is
    downloaded once; or a list of them."""
    format: FileFormatName | None = None
    """Format of the files. Default: by the ends of their names, such as `.csv` or `.jsonl.gz`.
    Files may be compressed by gzip, zstd or zip, which their first bytes tell."""
    records: JsonPath | None = None
    """Keys that lead to the list of records in a JSON file. Default: the file is the list."""
    sheet: Annotated[str, Field(min_length=1)] | None = None
    """Name of the sheet of an Excel workbook. Default: its only one."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """Character between the values of a CSV file; of `.tsv` files, a tab."""
    nulls: tuple[str, ...] = ("",)
    """Texts that stand for no value in a CSV file."""
    max_bytes: Size = 2**30
    """Maximum size of a file that is read whole, decompressed (of Parquet and Excel, also of its
    rows in memory), and of a record of others."""
    range_bytes: Annotated[Size, Field(ge=1)] = 32 * 2**20
    """Size of the ranges into which CSV and NDJSON files are cut that are larger and not
    compressed. They are read side by side, by the Dask cluster if there is one."""


def _moment(value: Any) -> Any:
    if isinstance(value, datetime):
        moment = value if value.tzinfo else value.replace(tzinfo=UTC)
        with suppress(OverflowError):  # With an offset it may be in the year 0, or 10000.
            moment.astimezone(UTC)
            return moment
    elif isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    elif isinstance(value, str):
        try:
            return _moment(datetime.fromisoformat(value))
        except ValueError:
            pass
    raise ValueError(
        f"{value!r} is not a date such as 2024-03-01, or a time such as 2024-03-01T12:00"
    )


Moment = Annotated[
    datetime, BeforeValidator(_moment, json_schema_input_type=Annotated[str, Field(min_length=10)])
]


class IngestWindow(Part):
    """The range of dates that is asked for."""

    from_: Moment = Field(alias="from")
    """Beginning: a date, or a time; without an offset, in UTC."""
    to: Moment
    """End, which is not part of it."""
    parameters: tuple[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]]
    """Query parameters of the beginning and the end."""
    format: Annotated[str, Field(min_length=2)] = "%Y-%m-%d"
    """Format of their values, as strftime has it."""
    step: Annotated[Seconds, Field(gt=0)] | None = None
    """Length of the steps that are asked for at the same time, e.g. `1d`. Default: the whole."""
    includes_end: bool = False
    """Whether the API includes the end: the last second (with `%f`, microsecond; in a format of
    dates, day) before `to` is sent instead. With times finer than seconds, use `%f`."""

    @model_validator(mode="after")
    def _forward(self) -> Self:
        if self.from_ >= self.to:
            raise ValueError(
                f"the window ends at {self.to:%Y-%m-%d %H:%M}, which is not after its beginning"
            )
        if self.step is not None and self._seconds / self.step > MAX_WINDOWS:
            raise ValueError(
                f"{self._seconds / self.step:,.0f} steps are more than {MAX_WINDOWS:,}: set a "
                "longer `step`"
            )
        return self

    @property
    def _seconds(self) -> float:
        return (self.to - self.from_).total_seconds()

    def steps(self) -> list[tuple[datetime, datetime]]:
        """Return beginning and end of each step."""
        length = timedelta(seconds=self.step or self._seconds)
        starts = [self.from_]
        while self.to - starts[-1] > length:  # The end of a step may be after the year 9999.
            starts.append(starts[-1] + length)
        return list(zip(starts, [*starts[1:], self.to], strict=True))

    def values(self, start: datetime, end: datetime) -> tuple[tuple[str, str], tuple[str, str]]:
        """Return the query parameters of a step."""
        if self.includes_end:
            end -= self._unit
        if self._has_time and "%z" not in self._directives:
            start, end = start.astimezone(UTC), end.astimezone(UTC)
        first, last = self.parameters
        return (first, self._formatted(start)), (last, self._formatted(end))

    def _formatted(self, moment: datetime) -> str:
        # `%s` of the C library takes a time for one of the machine's own zone.
        seconds = str(math.floor(moment.timestamp()))
        pattern = _EPOCH.sub(lambda found: found[1] or seconds, self.format)
        return moment.strftime(pattern)

    @property
    def _directives(self) -> str:
        return self.format.replace("%%", "")

    @property
    def _has_time(self) -> bool:
        return _HAS_TIME.search(self._directives) is not None

    @property
    def _unit(self) -> timedelta:
        if not self._has_time:
            return timedelta(days=1)
        return timedelta(microseconds=1) if "%f" in self._directives else timedelta(seconds=1)

    @property
    def label(self) -> str:
        """The window for people, such as `2024-03-01 to 2024-04-01`."""
        return f"{_shown(self.from_)} to {_shown(self.to)}"


def _shown(moment: datetime) -> str:
    text = moment.strftime("%Y-%m-%d %H:%M").removesuffix(" 00:00")
    return text


class IngestOutput(Part):
    """The output that the rows are published to."""

    uri: Uri
    """Prefix of the output, which contains published Parquet only."""
    mode: Literal["error", "append", "overwrite", "overwrite-partitions"] = "error"
    """Files that the output has already: `error` refuses an output with files; `append` keeps them;
    `overwrite` replaces all files; `overwrite-partitions` replaces those in the Hive partitions
    that get new files."""
    file_bytes: Size = 128 * 2**20
    """Target size of a file."""
    partition_by: tuple[Annotated[str, Field(pattern=r"^[^/=%\x00-\x1f\x7f]+$")], ...] = ()
    """Columns by which files are put into Hive folders: text, integers, dates or booleans. They are
    in the folders' names, not in the files."""
    max_partitions: PositiveInt = 1_000
    """Maximum number of partitions of a file's rows with `partition_by`."""
    compression: CompressionText = "zstd"
    """Compression of the files: `zstd`, `snappy`, `lz4`, `gzip`, `brotli` or `uncompressed`; a
    level can follow, e.g. `zstd:3`."""
    keep_versions: NonNegativeInt = 1
    """Number of replaced versions that are kept for `rollback`."""

    @model_validator(mode="after")
    def _has_partitions(self) -> Self:
        refuse_whole_bucket(self.uri)
        if self.mode == "overwrite-partitions" and not self.partition_by:
            raise ValueError("`mode: overwrite-partitions` needs `partition_by`")
        return self


class Ingest(Part):
    """An ingest, as written in its file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    """Name of the ingest: letters, digits and `-_.`."""
    http: Http | None = None
    files: Files | None = None
    sql: Sql | None = None
    source: Annotated[
        RowFunction | None,
        BeforeValidator(section_of_function, json_schema_input_type=str | RowFunction | None),
    ] = None
    window: IngestWindow | None = None
    schema_: Literal["pinned", "widen", "fail"] = Field(default="pinned", alias="schema")
    """What happens when records have other fields than the output: `pinned` leaves new fields out
    and fills missing ones with nulls; `widen` adds new fields, and takes a wider type; `fail`
    fails. Differences are always reported, and a value that does not fit its type always fails."""
    types: dict[str, Annotated[str, AfterValidator(_type)]] = Field(default={})
    """Types of columns that JSON does not carry: date, time, `datetime[us, UTC]`, `decimal[18, 2]`,
    int8 to int64, float32, and lists. As string, a value that is no text becomes its JSON."""
    output: IngestOutput

    @model_validator(mode="after")
    def _agree(self) -> Self:
        sources = (self.http, self.files, self.sql, self.source)
        if sources.count(None) != len(sources) - 1:
            raise ValueError("set one of `http`, `files`, `sql` and `source`: what is ingested")
        if self.sql is not None and self.sql.incremental and self.output.mode != "append":
            raise ValueError("`sql.incremental` needs `output.mode: append`: it adds new rows")
        for uri in self.files.uri if self.files is not None else ():
            source, output = uri.rstrip("/") + "/", self.output.uri.rstrip("/") + "/"
            if source.startswith(output) or output.startswith(source):
                raise ValueError(f"files {uri} and output {self.output.uri} overlap")
        return self

    @model_validator(mode="after")
    def _has_parameters(self) -> Self:
        if self.window is not None:
            if self.http is None:
                raise ValueError("`window` needs `http`: it sets query parameters")
            own = {*self.http.params, self.http.pages.name if self.http.pages.by != "none" else ""}
            twice = [name for name in self.window.parameters if name in own]
            if twice or len(set(self.window.parameters)) < 2:
                raise ValueError(
                    f"query parameter {(twice or self.window.parameters)[0]!r} is set twice"
                )
        return self

    @property
    def kind(self) -> Literal["http", "files", "sql", "source"]:
        """Key of what is ingested."""
        if self.http is not None:
            return "http"
        if self.files is not None:
            return "files"
        return "sql" if self.sql is not None else "source"

    def to_yaml(self) -> str:
        """Return the text of a file that loads to an equal ingest; defaults are left out."""
        data = self.model_dump(by_alias=True, exclude_defaults=True)
        return dump_yaml(_plain(data))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else value


def load_ingest(path: str | Path, changes: Sequence[str] = ()) -> Ingest:
    """Read the file of an ingest.

    Args:
        path: The file; `-` is standard input.
        changes: Values to set or replace, such as `window.from=2024-03-01`, in the syntax of YAML.

    Raises:
        JobError: The file is missing, is not YAML, or has a key that is unknown, missing or
            mistyped. The message names the file and the line.
    """
    file = change_yaml(read_yaml(Path(path), JobError), changes, "--set", JobError)
    return validate(file, Ingest, JobError)


def parse_ingest(text: str, name: str = "ingest.yaml") -> Ingest:
    """Read an ingest from a file's text; `name` is for messages. Raises as `load_ingest`."""
    return validate(parse_yaml(text, name, JobError), Ingest, JobError)
