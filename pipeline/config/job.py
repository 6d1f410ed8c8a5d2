"""Load the job file: input, chunks, transform and output.

    name: lineitem-revenue
    input:
      uri: s3://demo/tpch/lineitem/
      filter: [[l_shipdate, ">=", 1994-01-01]]
    chunks: {target: 128MiB}
    transform: pipeline.examples.revenue:revenue
    params: {currency: EUR}
    output: {uri: s3://demo/revenue/, mode: error}

Addresses, sizes of batches and the like are settings. A job file may have 1 MiB, 100 levels of
nesting, and aliases that repeat 100,000 values. The transform must be defined in a module that
`transforms.allow` names; a function that such a module only imports is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from partitioning.dtypes import parse_type
from partitioning.errors import WindowError
from partitioning.windows import Windowing
from pipeline.config.file_kind import file_kind
from pipeline.config.job_checks import Checks, Share, checks_of
from pipeline.config.job_part import SHARE_SCHEMA, Function, Part, check_limit
from pipeline.config.units import Seconds, Size, format_size
from pipeline.config.yaml_file import change_yaml, dump_yaml, parse_yaml, read_yaml
from pipeline.config.yaml_loader import MAX_BYTES
from pipeline.config.yaml_model import validate
from pipeline.errors import InvalidUriError, JobError
from pipeline.masking import mask_text, names_user
from pipeline.uris import parse

Value = bool | int | float | str | date | datetime | Decimal | None
Term = tuple[str, str, Any]
"""One condition, (column, operator, value); null tests have the value None."""
Filter = tuple[tuple[Term, ...], ...]
"""An OR of ANDs of terms."""

OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "in", "not in", "is null", "is not null")
_WITHOUT_VALUE = ("is null", "is not null")
_WITH_LIST = ("in", "not in")


def _uris(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def check_uri(value: str) -> str:
    """Return a URI of S3 or of a local file; raises ValueError for others."""
    if names_user(value):
        raise ValueError("a URI must not hold credentials; set those of S3 in the settings (s3.…)")
    try:
        parse(value)
    except InvalidUriError as error:
        message = mask_text(str(error))
        raise ValueError(f"{message} ({error.hint})" if error.hint else message) from None
    if not value:
        raise ValueError("'' is neither s3://bucket/prefix/ nor a local path")
    return value


def refuse_whole_bucket(output: str) -> None:
    """Raise ValueError for an output that is a whole bucket."""
    if re.fullmatch(r"s3://[^/]+/", output.rstrip("/") + "/"):
        raise ValueError(f"output {output} is a whole bucket; name a prefix in it")


def _param(value: Any, at: str = "") -> Any:
    """Validate a parameter: JSON, with dates and times."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _param(item, f"{at}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_param(item, at) for item in value]
    if value is None or isinstance(value, bool | int | float | str | date):
        return value
    if isinstance(value, dict):
        raise ValueError(f"{at.lstrip('.')}: the keys of a mapping must be text; quote them")
    kind = type(value).__name__
    raise ValueError(
        f"{at.lstrip('.')}: expected text, a number, a date, true, false, a list or a mapping, "
        f"found {kind}"
    )


def date_to_json(value: Any) -> dict[str, str]:
    """Encode a date of `params` for `json.dumps`: other than the same text, for fingerprints."""
    if isinstance(value, date):
        return {type(value).__name__: value.isoformat()}
    raise TypeError(f"{type(value).__name__} is not a value of `params`")


def _limit(value: Any) -> int | str | None:
    return check_limit(value, "chunks")


def _object_limit(value: Any) -> int | str | None:
    return check_limit(value, "objects")


def _term(term: Any) -> Term:
    if not isinstance(term, list | tuple) or not 2 <= len(term) <= 3:
        raise ValueError(f"{term!r} is not [column, operator, value]")
    column, operator, value = (*term, None) if len(term) == 2 else term
    if not isinstance(column, str) or not column:
        raise ValueError(f"{column!r} is not a column name")
    operator = " ".join(operator.lower().split()) if isinstance(operator, str) else operator
    if operator not in OPERATORS:
        raise ValueError(f"{operator!r} is not an operator; use one of {', '.join(OPERATORS)}")
    return column, operator, _term_value(column, operator, value)


def _term_value(column: str, operator: str, value: Any) -> Any:
    if operator in _WITHOUT_VALUE:
        if value is not None:
            raise ValueError(f"[{column}, {operator}] takes no value, found {value!r}")
        return None
    if value is None:
        raise ValueError(f"[{column}, {operator}, …] needs a value; test nulls with `is null`")
    if operator in _WITH_LIST:
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"[{column}, {operator}, …] needs a list of values, found {value!r}")
        return tuple(_scalar(column, item) for item in value)
    return _scalar(column, value)


def _scalar(column: str, value: Any) -> Any:
    if value is None or not isinstance(value, Value):
        raise ValueError(f"{value!r} cannot be compared with column {column!r}")
    return value


def _filter(value: Any) -> Filter | None:
    """Normalise a list of terms (AND), or a list of such lists (OR), to the latter."""
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise ValueError("a filter is a list of [column, operator, value]")
    if not value:
        return None
    if all(isinstance(item, list | tuple) and item for item in value) and isinstance(
        value[0][0], list | tuple
    ):
        return tuple(tuple(_term(term) for term in terms) for terms in value)
    return (tuple(_term(term) for term in value),)


def _column_type(value: str) -> str:
    parse_type(value)
    return value


ColumnType = Annotated[str, AfterValidator(_column_type)]
HiveType = Literal["string", "int8", "int16", "int32", "int64", "date"]
"""As `partitioning.hive.HIVE_TYPES`."""
_COMPRESSION_PATTERN = (
    r"^(zstd(:([1-9]|1[0-9]|2[0-2]))?|gzip(:[1-9])?|brotli(:([0-9]|1[01]))?"
    r"|snappy|lz4|uncompressed)$"
)


def _compression(text: str) -> str:
    if not re.match(_COMPRESSION_PATTERN, text):
        raise ValueError(
            f"{text!r} is no compression: write zstd (levels zstd:1 to zstd:22), gzip (1 to 9), "
            "brotli (0 to 11), snappy, lz4 or uncompressed"
        )
    return text


CompressionText = Annotated[
    str,
    AfterValidator(_compression),
    WithJsonSchema({"type": "string", "pattern": _COMPRESSION_PATTERN}),
]
Uri = Annotated[str, AfterValidator(check_uri)]


def _distinct(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for at, name in enumerate(names or ()):
        if name in (names or ())[:at]:
            raise ValueError(f"column {name!r} is named twice")
    return names


def _distinct_or_all(
    names: Literal["all"] | tuple[str, ...] | None,
) -> Literal["all"] | tuple[str, ...] | None:
    return names if names == "all" else _distinct(names)


_PARTITION_PATTERN = r"^[^/=%\x00-\x1f\x7f]+$"
ColumnName = Annotated[str, Field(min_length=1)]
ResourceName = Annotated[str, Field(min_length=1, max_length=100)]
_TERM_SCHEMA: dict[str, Any] = {
    "type": "array",
    "prefixItems": [{"type": "string", "minLength": 1}, {"enum": list(OPERATORS)}, {}],
    "minItems": 2,
    "maxItems": 3,
}
_FILTER_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "array", "items": _TERM_SCHEMA},
        {"type": "array", "items": {"type": "array", "items": _TERM_SCHEMA, "minItems": 1}},
        {"type": "null"},
    ]
}


def _table_as_uri(data: Any) -> Any:
    """Let the prefix of a table stand for the input's URI."""
    if isinstance(data, dict) and "table" in data and "uri" not in data:
        return {"uri": data["table"], **data}
    return data


def _uri_or_table(schema: dict[str, Any]) -> None:
    """Say in the JSON Schema that one of the two keys is needed."""
    del schema["required"]
    schema["anyOf"] = [{"required": ["uri"]}, {"required": ["table"]}]


class Input(Part):
    """The dataset to read."""

    model_config = ConfigDict(json_schema_extra=_uri_or_table)

    uri: Annotated[
        tuple[Uri, ...],
        BeforeValidator(_uris, json_schema_input_type=str | tuple[str, ...]),
        Field(min_length=1),
    ]
    """Prefix or list of prefixes. Needed, unless `table` is set."""
    table: Uri | None = None
    """Prefix of a Delta table to read instead: the files of one version, as its log names them."""
    version: NonNegativeInt | None = None
    """Version of the table. Default: the newest when the run is planned."""
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Columns that the transform may use. Default: those that it needs, which Polars determines."""
    filter: Annotated[Filter | None, BeforeValidator(_filter), WithJsonSchema(_FILTER_SCHEMA)] = (
        None
    )
    """Filter on rows: a list of [column, operator, value] terms that all hold, or a list of such
    lists, one of which holds. Operators: `==`, `!=`, `<`, `<=`, `>`, `>=`; `in` and `not in`, with
    a list; `is null` and `is not null`, without a value."""
    include: tuple[str, ...] = ()
    """Glob patterns of object names below the prefix, one of which must match. Default:
    `*.parquet`, `*.parq` and `*.pq`."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of object names below the prefix, none of which may match."""
    hive_types: dict[str, HiveType] = Field(default={})
    """Types of Hive columns, such as `{zip: string}`. Default: int64 or date if all values of the
    column fit, else string. Folders of the output keep the spelling of the input."""
    schema_: Literal["identical", "union", "first"] = Field(default="identical", alias="schema")
    """Schemas of the input's files: `identical` refuses differences; `union` has all columns, each
    in a type that holds those of all files; `first` has those of the first file, and others must
    fit."""
    types: dict[str, ColumnType] = Field(default={})
    """Types to read columns as, regardless of the files: int8 to int128, uint8 to uint128, float32,
    float64, boolean, string, categorical, binary, date, time, datetime[us], datetime[us, UTC],
    duration[us], decimal[38, 2], list[int64]. A value that does not fit is an error."""
    object_column: str | None = Field(default=None, min_length=1)
    """Name of an extra column with the URI of each row's object."""
    int96: Literal["us", "ns"] = "us"
    """Unit of times from INT96 columns. Nanoseconds end in the year 2262."""
    on_bad_object: Literal["fail", "skip", "quarantine"] = "fail"
    """Objects that are not readable Parquet: `fail` stops the run; `skip` leaves them out;
    `quarantine` leaves them out and keeps a record of each next to the output."""
    max_quarantined: Annotated[
        int | str | None, BeforeValidator(_object_limit), WithJsonSchema(SHARE_SCHEMA)
    ] = None
    """Maximum number of objects in quarantine, or share of the input's objects such as 1%; with
    more, nothing is published."""
    verify_checksums: bool = False
    """Check each page that is read against its stored checksum, if it has one. Every column is then
    decoded twice."""
    changed_only: bool = False
    """Read only objects that are new or changed since the output was last published."""

    @model_validator(mode="before")
    @classmethod
    def _names_table(cls, data: Any) -> Any:
        return _table_as_uri(data)

    @model_validator(mode="after")
    def _reads_table(self) -> Self:
        if self.table is None:
            if self.version is not None:
                raise ValueError("`version` needs `table`")
            return self
        if self.uri != (self.table,):
            raise ValueError("set `uri` or `table`, not both")
        own = {"include", "exclude", "hive_types", "changed_only", "schema_"}
        for name in sorted(own - keys_at_default(self, *own)):
            key = name.removesuffix("_")
            raise ValueError(
                f"`table` and `{key}` exclude each other: the table's log says which files are "
                "read, and their columns"
            )
        return self

    @model_validator(mode="after")
    def _limits_quarantine(self) -> Self:
        if self.max_quarantined is not None and self.on_bad_object != "quarantine":
            raise ValueError("`max_quarantined` needs `on_bad_object: quarantine`")
        return self


class Chunks(Part):
    """How the input is cut into chunks."""

    target: Size = 128 * 2**20
    """Target size of a chunk: bytes of the columns that are read, decoded in memory. A row group of
    more than twice the target is cut into chunks of consecutive rows, each at least 16 MiB."""
    max_rows: PositiveInt | None = None
    """Maximum number of rows of a chunk; a larger row group is a chunk by itself."""
    per_file: bool = False
    """Make one chunk per object, regardless of its size."""
    per_partition: bool = False
    """Make one chunk per Hive partition, regardless of its size."""
    cross_partitions: bool = False
    """Let chunks span Hive partitions."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.per_file and self.per_partition:
            raise ValueError("set `per_file` or `per_partition`, not both")
        if self.per_partition and self.cross_partitions:
            raise ValueError("`per_partition` and `cross_partitions` exclude each other")
        return self


class Table(Part):
    """The table that an output is, for the engines that read it."""

    format: Literal["delta"]
    """Format of the table: `delta`, a Delta Lake table, whose log is in the output. It needs the
    extra `tables`."""


_NOT_WITH_KEEP = {
    *("row_group_rows", "row_group_bytes", "sort_by"),
    *("partition_by", "file_bytes", "page_index", "table"),
}
"""Keys that would change the rows, row groups or files that an output keeps."""


class Output(Part):
    """The output that results are published to."""

    uri: Uri
    """Prefix of the output, which contains published Parquet only."""
    mode: Literal["error", "append", "overwrite", "overwrite-partitions"] = "error"
    """Files that the output has already: `error` refuses an output with files; `append` keeps them,
    and later runs of the job read only objects that are new since; `overwrite` replaces all files;
    `overwrite-partitions` replaces those in the Hive partitions that get new files."""
    schema_: Literal["identical", "widen"] = Field(default="identical", alias="schema")
    """Columns of a run: those of the output's files (`identical`), or also new columns, and types
    one of which holds the other, such as int32 and int64 (`widen`)."""
    compression: CompressionText = "zstd"
    """Compression of the written files: `zstd`, `snappy`, `lz4`, `gzip`, `brotli` or
    `uncompressed`. A level can follow, e.g. `zstd:3`; without one, `encoding: auto` chooses zstd's
    level for each column, and other codecs take their own default."""
    encoding: Literal["auto", "plain"] = "auto"
    """Encoding of the columns: chosen for each column by encoding a sample of it (`auto`), or the
    defaults of Polars' writer (`plain`). Small results and nested columns take the defaults."""
    row_group_rows: PositiveInt | None = None
    """Number of rows per row group. Default: the writer's."""
    row_group_bytes: Size | None = None
    """Target size of a row group: bytes of its rows in memory. With `row_group_rows` too, the one
    that is reached first counts."""
    sort_by: Annotated[tuple[ColumnName, ...], AfterValidator(_distinct)] = ()
    """Columns of the result by which rows are sorted, ascending, nulls first; equal rows keep their
    order. Each file is sorted, and with `partition_by` or `file_bytes` also the files of a
    folder: each has its own range of the first column."""
    partition_by: Annotated[
        tuple[Annotated[str, Field(pattern=_PARTITION_PATTERN)], ...] | None,
        Field(min_length=1),
        AfterValidator(_distinct),
    ] = None
    """Columns of the result by which files are put into Hive folders, such as `month=2024-02/`:
    text, integers, dates or booleans. The columns are in the folders' names, not in the files.
    Default: the folders of the input."""
    file_bytes: Size | None = None
    """Target size of a file. The results of chunks are merged into files of about this size before
    they are published. Default: one file per chunk; with `partition_by`, 128 MiB."""
    max_partitions: PositiveInt = 10_000
    """Maximum number of partitions that a run may have with `partition_by`."""
    dictionary: Annotated[tuple[ColumnName, ...] | None, AfterValidator(_distinct)] = None
    """Columns that are written with a dictionary; no other column is. Default: as `encoding`
    says."""
    page_index: bool = False
    """Write a page index into every file, by which readers with a filter skip pages within a row
    group. Default: only Polars' writer, which writes small results, adds one."""
    keep_versions: NonNegativeInt = 1
    """Number of replaced versions that are kept for `rollback`. A table keeps all of them, until
    its own vacuum deletes them."""
    keep: Annotated[
        Literal["all"] | tuple[ColumnName, ...] | None,
        AfterValidator(_distinct_or_all),
    ] = None
    """Columns of the input that each file keeps, as their bytes are: `all`, or a list. The
    transform returns only new or replaced columns, one row for each row of the input, in its order.
    There is one file for each of the input."""
    rename: dict[ColumnName, ColumnName] = Field(default={})
    """New names of kept columns, by the old one."""
    max_garbage: Share = "20%"
    """Maximum share of a file with `keep` that may be the bytes of dropped and replaced columns.
    Where it would be more, the file is rewritten."""
    table: Table | None = None
    """Commit the files to a table too. An output that is a table stays one. Its columns change only
    with `schema: widen`."""

    @model_validator(mode="after")
    def _keeps(self) -> Self:
        if self.keep is None:
            for key in ("rename", "max_garbage"):
                if key not in keys_at_default(self, key):
                    raise ValueError(f"`{key}` needs `keep`, which says what files keep")
            return self
        for key in sorted(_NOT_WITH_KEEP - keys_at_default(self, *_NOT_WITH_KEEP)):
            raise ValueError(
                f"`keep` and `{key}` exclude each other: kept columns stay as the input's files "
                "have them, row group by row group"
            )
        if self.keep != "all":
            for name in self.rename:
                if name not in self.keep:
                    raise ValueError(f"rename: {name!r} is not among the columns of `keep`")
        targets = list(self.rename.values())
        for at, name in enumerate(targets):
            if name in targets[:at]:
                raise ValueError(f"rename: two columns would be named {name!r}")
        return self

    @property
    def merges(self) -> bool:
        """Whether files are merged from the results of several chunks."""
        return self.partition_by is not None or self.file_bytes is not None

    @property
    def merge_key(self) -> str | None:
        """The first column that rows within a partition are sorted by."""
        names = (name for name in self.sort_by if name not in (self.partition_by or ()))
        return next(names, None) if self.merges else None


class Reduce(Part):
    """How the chunks' results are combined."""

    combine: Function
    """Function that combines a list of LazyFrames into one with the same columns, as
    `module:function`."""
    finalize: Function | None = None
    """Function that turns the last LazyFrame into the result, as `module:function`."""


def _then(value: Any) -> Any:
    """Read the short form of `then`: its function."""
    return {"function": value} if isinstance(value, str) else value


class Then(Part):
    """A function that is mapped over the groups of the reduced result.

    `then: module:function` is short for a function whose groups are the rows.
    """

    function: Function
    """Function from LazyFrame to LazyFrame, as `module:function`. It gets the rows of one group, in
    the order of the reduced result."""
    by: Annotated[tuple[ColumnName, ...], AfterValidator(_distinct)] = ()
    """Columns of the reduced result whose values make up a group; nulls are equal to each other.
    Default: each row is a group, as a `group_by` makes them."""
    params: Annotated[dict[str, Any], AfterValidator(_param)] = Field(default={})
    """Keyword arguments of the function: JSON values, dates and times."""
    max_groups: PositiveInt | None = None
    """Maximum number of groups in a piece. A piece is mapped, fails and is retried as a whole, and
    is one file. Default: as many as make about 100 pieces, of at most `chunks.target` each."""


class WindowRule(Part):
    """How the input's partitions are cut into windows, which a backfill runs and commits."""

    column: Annotated[str, Field(min_length=1)] | None = None
    """Hive column of the input (a directory such as `ds=2024-02-29`)."""
    columns: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Hive columns that make up a date, instead of `column`: from coarse to fine, such as
    `[year, month, day]` or `[ds, hour]`."""
    grain: Literal["hour", "day", "month", "value"] = "day"
    """Length of a window: `hour`, `day` or `month`, into which finer values are grouped; `value`
    makes each value a window, e.g. a customer."""
    timezone: str = "UTC"
    """IANA name of the time zone of hours, days and months."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.column is None) == (not self.columns):
            raise ValueError("set `column`, or `columns` if several make up a date")
        try:
            self.windowing()
        except WindowError as error:
            raise ValueError(str(error)) from error
        return self

    def windowing(self) -> Windowing:
        """Return the rule as the planner's type."""
        column, *others = self.columns or (self.column or "",)
        return Windowing(column, self.grain, self.timezone, tuple(others))


OutputName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$", max_length=100)]


def _one_of_two(schema: dict[str, Any]) -> None:
    """Let a job file have `output` or `outputs`."""
    schema["required"].remove("output")
    schema["oneOf"] = [{"required": ["output"]}, {"required": ["outputs"]}]


class Job(Part):
    """A job, as written in its file."""

    model_config = ConfigDict(json_schema_extra=_one_of_two)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    """Name of the job: letters, digits and `-_.`; part of run names."""
    input: Input
    chunks: Chunks = Chunks()
    transform: Function
    """Function from LazyFrame to LazyFrame, as `module:function`."""
    params: Annotated[dict[str, Any], AfterValidator(_param)] = Field(default={})
    """Keyword arguments of the transform: JSON values, dates and times. Secrets are in environment
    variables of the driver and the workers: `{from_env: SHOP_TOKEN}` stands for the value of one,
    at any depth. The job has its name only, and the value is masked in logs and errors."""
    tables: tuple[Uri, ...] = ()
    """Tables (an object or a prefix) that the transform reads with `read_table`. Planning finds
    those that the transform reads on no rows; list others here. A run reads the planned version."""
    output: Output
    outputs: dict[OutputName, Output] = Field(default={})
    """Several outputs instead of `output`, by name: the transform returns a LazyFrame for each of
    these names, as a dict. A run is published to all of them, or to none."""
    retries: NonNegativeInt = 3
    """Number of retries of a chunk after transient errors. This and the next three keys hold for
    the pieces of `then` too."""
    rounds: PositiveInt = 3
    """Number of passes over the chunks left, each in smaller batches."""
    max_failures: Annotated[
        int | str | None, BeforeValidator(_limit), WithJsonSchema(SHARE_SCHEMA)
    ] = None
    """Maximum number of failed chunks, or share such as 5%; with more, the run stops."""
    chunk_timeout: Annotated[Seconds, Field(gt=0)] | None = None
    """Maximum duration of a chunk, in seconds."""
    concurrency: PositiveInt | None = None
    """Maximum number of chunks that a worker process maps at a time, e.g. because the transform
    uses a device or much memory; with `--local`, the maximum number of worker processes that map.
    Default: one per thread of the worker. This and the next key hold for pieces of `then` too."""
    resources: dict[ResourceName, Annotated[float, Field(gt=0)]] = Field(default={})
    """Resources of Dask that each batch needs of its worker, such as `{GPU: 1}`. Workers offer them
    by the setting `dask.resources`; others map nothing. With `--local` they are not checked."""
    reduce: Reduce | None = None
    then: Annotated[
        Then | None, BeforeValidator(_then, json_schema_input_type=Then | Function | None)
    ] = None
    checks: Annotated[
        Checks, BeforeValidator(checks_of, json_schema_input_type=Checks | Function)
    ] = Checks()
    window: WindowRule | None = None
    """Windows of a backfill. Default: the output has one commit per run."""

    @model_validator(mode="before")
    @classmethod
    def _first_output(cls, data: Any) -> Any:
        """Let `output` be the first of several outputs."""
        if not isinstance(data, dict) or not isinstance(data.get("outputs"), dict):
            return data
        if not data["outputs"]:
            return {key: value for key, value in data.items() if key != "outputs"}
        if "output" in data:
            raise ValueError("set `output` or `outputs`, not both")
        first = next(iter(data["outputs"].values()))
        # Problems of an output are reported where it is written.
        try:
            first = Output.model_validate(first)
        except ValidationError:
            first = Output.model_construct(uri="")
        return {**data, "output": first}

    @model_validator(mode="after")
    def _several(self) -> Self:
        if not self.outputs:
            return self
        for key, is_set in (
            ("reduce", self.reduce is not None),
            ("window", self.window is not None),
            ("checks", not self.checks.is_empty),
        ):
            if is_set:
                raise ValueError(f"`outputs` and `{key}` exclude each other: write a job for each")
        for name, output in self.outputs.items():
            if output.table is not None:
                raise ValueError(
                    f"outputs.{name}.table: several outputs are not tables; write a job for each"
                )
            if output.merges:
                key = "file_bytes" if output.partition_by is None else "partition_by"
                raise ValueError(
                    f"outputs.{name}.{key}: the files of several outputs are not merged; write a "
                    "job for each output"
                )
        if len({output.mode == "append" for output in self.outputs.values()}) > 1:
            raise ValueError(
                "`append` must be the mode of all outputs or of none: a run that appends reads "
                "only what is new for all of them"
            )
        return self

    @model_validator(mode="after")
    def _windows(self) -> Self:
        if self.window is not None and self.chunks.cross_partitions:
            raise ValueError(
                "`window` and `chunks.cross_partitions` exclude each other: a chunk with rows of "
                "two windows could be committed with neither"
            )
        if self.window is not None and self.reduce is not None:
            raise ValueError(
                "`window` and `reduce` exclude each other: a reduce has one result, not one per "
                "window"
            )
        return self

    @model_validator(mode="after")
    def _groups(self) -> Self:
        if self.then is not None and self.reduce is None:
            raise ValueError(
                "`then` needs `reduce`: rows of a group may be in any chunk, so that groups are "
                "whole only in a reduced result; without one, map with `transform` alone"
            )
        return self

    @model_validator(mode="after")
    def _merges(self) -> Self:
        keys = ("partition_by", "file_bytes")
        key = next((key for key in keys if getattr(self.output, key) is not None), None)
        names = self.output.partition_by
        if self.window is not None and names and self.output.mode == "overwrite-partitions":
            lacking = [name for name in self.window.windowing().columns if name not in names]
            if lacking:
                raise ValueError(
                    f"`window` and `output.partition_by` without {', '.join(lacking)} exclude each "
                    "other in mode overwrite-partitions: a folder would have rows of several "
                    f"windows, none of which could be replaced alone; add {', '.join(lacking)} to "
                    "`output.partition_by`, or set `output.mode` to append"
                )
        if key is not None and self.reduce is not None:
            raise ValueError(
                f"`reduce` and `output.{key}` exclude each other: the result of a reduce is one "
                "file, and with `then` each file has whole groups"
            )
        return self

    @model_validator(mode="after")
    def _keeps(self) -> Self:
        if all(output.keep is None for output in self.all_outputs.values()):
            return self
        for key, is_set, reason in (
            ("outputs", bool(self.outputs), "write a job for each output"),
            ("reduce", self.reduce is not None, "the result of a reduce is one file"),
            ("input.filter", self.input.filter is not None, "a file keeps all rows"),
            ("input.types", bool(self.input.types), "kept columns keep their types"),
            (
                "input.on_bad_object",
                self.input.on_bad_object != "fail",
                "a file without its rows could not be told from an empty one",
            ),
            ("checks.rows", self.checks.rows is not None, "kept columns are not decoded"),
            ("chunks.per_partition", self.chunks.per_partition, "each file is a chunk"),
            ("chunks.cross_partitions", self.chunks.cross_partitions, "each file is a chunk"),
            ("chunks.max_rows", self.chunks.max_rows is not None, "each file is a chunk"),
        ):
            if is_set:
                raise ValueError(f"`output.keep` and `{key}` exclude each other: {reason}")
        return self

    @model_validator(mode="after")
    def _tables(self) -> Self:
        if self.output.table is None:
            return self
        if self.chunks.cross_partitions:
            raise ValueError(
                "`output.table` and `chunks.cross_partitions` exclude each other: all files of a "
                "table are in folders of the same partition columns"
            )
        if self.output.keep_versions != type(self.output).model_fields["keep_versions"].default:
            raise ValueError(
                "`output.table` and `output.keep_versions` exclude each other: a table keeps the "
                "files of older versions until its own vacuum deletes them"
            )
        return self

    @model_validator(mode="after")
    def _table_input(self) -> Self:
        if self.input.table is None:
            return self
        if any(output.mode == "append" for output in self.all_outputs.values()):
            raise ValueError(
                "`input.table` and mode append exclude each other: a table's files are rewritten "
                "(OPTIMIZE), so that rows would be appended again; overwrite, or overwrite "
                "partitions"
            )
        if self.window is not None:
            raise ValueError(
                "`input.table` and `window` exclude each other: each window would read another "
                "version"
            )
        return self

    @model_validator(mode="after")
    def _apart(self) -> Self:
        outputs = [output.uri.rstrip("/") + "/" for output in self.all_outputs.values()]
        for at, output in enumerate(outputs):
            refuse_whole_bucket(output)
            for uri in self.input.uri:
                source = uri.rstrip("/") + "/"
                if source == output and self.replaces_what_it_keeps:
                    continue
                if source.startswith(output) or output.startswith(source):
                    raise ValueError(
                        f"input {uri} and output {output} overlap: the next run would read "
                        "the output of this one; to change files where they are: `chunkmap adopt`, "
                        "then `output.keep` and mode overwrite or overwrite-partitions"
                    )
            for other in outputs[:at]:
                if other.startswith(output) or output.startswith(other):
                    raise ValueError(f"outputs {other} and {output} lie within each other")
        return self

    @property
    def replaces_what_it_keeps(self) -> bool:
        """Whether files are made of those that they replace, if the input is the output."""
        is_replaced = self.output.mode in ("overwrite", "overwrite-partitions")
        return self.output.keep is not None and not self.outputs and is_replaced

    @property
    def all_outputs(self) -> dict[str, Output]:
        """The outputs by name; a single output has the name `output`."""
        return self.outputs or {"output": self.output}

    def of_output(self, name: str) -> Self:
        """Return the job with one of its several outputs as `output`."""
        return self.model_copy(update={"output": self.outputs[name]})

    def to_yaml(self) -> str:
        """Return the text of a file that loads to an equal job; defaults are left out.

        Raises:
            JobError: The file would be too large to be loaded.
        """
        data = _plain(self.model_dump(by_alias=True, exclude_defaults=True))
        if self.outputs:
            del data["output"]  # It is the first of them.
        if self.input.table is not None:
            del data["input"]["uri"]
        elif len(self.input.uri) == 1:
            data["input"]["uri"] = self.input.uri[0]
        if "target" in data.get("chunks", {}):
            data["chunks"]["target"] = _exact_size(self.chunks.target)
        text = dump_yaml(data)
        if len(text.encode()) > MAX_BYTES:
            raise JobError(
                f"job {self.name} is larger than {MAX_BYTES:,} bytes as a file",
                hint="store data in separate objects, and name their URIs in params",
            )
        return text


LATER_OUTPUT_KEYS = (
    *("encoding", "row_group_bytes", "sort_by", "dictionary", "page_index"),
    *("partition_by", "file_bytes", "max_partitions", "table"),
    *("keep", "rename", "max_garbage"),
)
"""Keys of the output that releases have added (see `keys_at_default`)."""


def keys_at_default(part: BaseModel, *names: str) -> set[str]:
    """Return those of some keys of a job that have their defaults.

    Ids and digests of stored jobs leave them out, so that a key that a release adds changes none.
    """
    fields = type(part).model_fields
    return {name for name in names if getattr(part, name) == fields[name].get_default()}


def load_job(path: str | Path, changes: Sequence[str] = ()) -> Job:
    """Read a job file.

    Args:
        path: The file; `-` is standard input.
        changes: Values to set or replace, such as `params.rate=1.1`, in the syntax of YAML.

    Raises:
        JobError: The file is missing, is not YAML, or has a key that is unknown, missing or
            mistyped. The message names the file and the line.
    """
    file = change_yaml(read_yaml(Path(path), JobError), changes, "--set", JobError)
    kind = file_kind(file.data)
    if kind == "pipeline":
        raise JobError(
            f"{file.where(('pipeline',))}: this is a pipeline, not a job",
            hint=f"chunkmap pipeline run {path}; for many dates: chunkmap pipeline backfill {path}",
        )
    if kind != "job":
        article = "an" if kind == "ingest" else "a"
        raise JobError(
            f"{file.name}: this is {article} {kind} file, not a job",
            hint=f"chunkmap {kind} {path}",
        )
    return validate(file, Job, JobError)


def parse_job(text: str, name: str = "job.yaml") -> Job:
    """Read a job from a file's text; `name` is for messages. Raises as `load_job`."""
    return validate(parse_yaml(text, name, JobError), Job, JobError)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Decimal) else value


def _exact_size(count: int) -> int | str:
    text = format_size(count)
    return text.replace(" ", "") if "." not in text and count % 1024 == 0 else count
