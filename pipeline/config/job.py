"""The job file: what is read, what is done to it, and where it goes.

    name: lineitem-revenue
    input:
      uri: s3://demo/tpch/lineitem/
      filter: [[l_shipdate, ">=", 1994-01-01]]
    chunks: {target: 128MiB}
    transform: examples.revenue:revenue
    params: {currency: EUR}
    output: {uri: s3://demo/revenue/, mode: error}

How it is operated (addresses, sizes of batches) is in the settings instead. A job file may have
1 MiB, 100 levels of nesting, and aliases that repeat 100,000 values. A transform is defined in a
module that `transforms.allow` names; a function that such a module only imports is refused.
"""

from __future__ import annotations

import re
import sys
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
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from partitioning.dtypes import parse_type
from partitioning.errors import WindowError
from partitioning.windows import Windowing
from pipeline.config.masking import mask_text, names_user
from pipeline.config.units import Seconds, Size, format_size
from pipeline.config.yaml_file import YamlFile, dump_yaml, explain_error, parse_yaml, read_yaml
from pipeline.config.yaml_loader import MAX_BYTES
from pipeline.errors import InvalidUriError, JobError
from pipeline.uris import parse

Value = bool | int | float | str | date | datetime | Decimal | None
Term = tuple[str, str, Any]
"""One condition, (column, operator, value); the null tests have the value None."""
Filter = tuple[tuple[Term, ...], ...]
"""Any of these, each of which is all of its terms."""

OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "in", "not in", "is null", "is not null")
_WITHOUT_VALUE = ("is null", "is not null")
_WITH_LIST = ("in", "not in")


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


def _uris(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _uri(value: str) -> str:
    if names_user(value):
        raise ValueError("a URI must not hold credentials: those of S3 are in the settings (s3.…)")
    try:
        parse(value)
    except InvalidUriError as error:
        said = mask_text(str(error))
        raise ValueError(f"{said} ({error.hint})" if error.hint else said) from None
    if not value:
        raise ValueError("'' is neither s3://bucket/prefix/ nor a local path")
    return value


def _function(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", value):
        raise ValueError(f"{value!r} is not module:function")
    return value


def _limit(value: Any) -> int | str | None:
    """A number of chunks, or a share such as `5%`."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?\s*%", value):
        if float(value.rstrip(" %")) > 100:
            raise ValueError(f"{value!r} is above 100%")
        return value
    raise ValueError(f"{value!r} is neither a number of chunks nor a share such as 5%")


def _object_limit(value: Any) -> int | str | None:
    """A number of objects, or a share such as `1%`."""
    try:
        return _limit(value)
    except ValueError as error:
        raise ValueError(str(error).replace("number of chunks", "number of objects")) from None


def _term(term: Any) -> Term:
    if not isinstance(term, list | tuple) or not 2 <= len(term) <= 3:
        raise ValueError(f"{term!r} is not [column, operator, value]")
    column, operator, value = (*term, None) if len(term) == 2 else term
    if not isinstance(column, str) or not column:
        raise ValueError(f"{column!r} is not a column's name")
    operator = " ".join(operator.lower().split()) if isinstance(operator, str) else operator
    if operator not in OPERATORS:
        raise ValueError(f"{operator!r} is not an operator; there are {', '.join(OPERATORS)}")
    return column, operator, _term_value(column, operator, value, given=len(term) == 3)


def _term_value(column: str, operator: str, value: Any, *, given: bool) -> Any:
    if operator in _WITHOUT_VALUE:
        if value is not None:
            raise ValueError(f"[{column}, {operator}] takes no value, found {value!r}")
        return None
    if not given or value is None:
        raise ValueError(f"[{column}, {operator}, …] needs a value; for nulls there is `is null`")
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
    """Terms (all hold) or lists of terms (any holds) as the latter."""
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
Uri = Annotated[str, AfterValidator(_uri)]
Function = Annotated[str, AfterValidator(_function)]


class Input(_Part):
    """What is read."""

    uri: Annotated[tuple[Uri, ...], BeforeValidator(_uris), Field(min_length=1)]
    """One prefix or several; a plain text is one."""
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Columns that the transform may see. Default: what it needs, found by asking Polars."""
    filter: Annotated[Filter | None, BeforeValidator(_filter)] = None
    """Rows to read: any of these, each all of its (column, operator, value) terms."""
    include: tuple[str, ...] = ()
    """Glob patterns of object names below the prefix, one of which must match. Default: what is
    named `*.parquet`, `*.parq` or `*.pq`."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of object names below the prefix, none of which may match."""
    hive_types: dict[str, HiveType] = {}
    """Types of Hive columns, such as `{zip: string}`. Default: int64 or date if all values of the
    column are such, else string. Folders of the output are spelled as those of the input anyway."""
    schema_: Literal["identical", "union", "first"] = Field(default="identical", alias="schema")
    """Whether files must agree, are widened to each other, or to the first."""
    types: dict[str, ColumnType] = {}
    """Types that columns come as, whatever they are in the files, such as
    `{id: int64, at: "datetime[us, UTC]"}`. A value that does not fit is an error."""
    object_column: str | None = Field(default=None, min_length=1)
    """A column of this name has the URI of each row's object."""
    int96: Literal["us", "ns"] = "us"
    """Unit of the times that INT96 columns come as. Nanoseconds end in the year 2262."""
    on_bad_object: Literal["fail", "skip", "quarantine"] = "fail"
    """What to do about an object that is not readable Parquet: fail, go on without it, or go on and
    keep a record of it beside the output."""
    max_quarantined: Annotated[int | str | None, BeforeValidator(_object_limit)] = None
    """Publish nothing when more objects than this are in quarantine: a number, or a share of the
    input's objects such as 1%."""
    verify_checksums: bool = False
    """Hold each page that is read against the checksum that its writer stored, if it did. Every
    column is then decoded twice."""
    changed_only: bool = False
    """Read only objects that are new or changed since the output was last published."""

    @model_validator(mode="after")
    def _limits_quarantine(self) -> Self:
        if self.max_quarantined is not None and self.on_bad_object != "quarantine":
            raise ValueError("`max_quarantined` needs `on_bad_object: quarantine`")
        return self


class Chunks(_Part):
    """How the input is cut."""

    target: Size = 128 * 2**20
    """Bytes of a chunk, decoded in memory, of the columns that are read. A row group of more than
    twice as many is cut into chunks of consecutive rows, of 16 MiB at least."""
    max_rows: PositiveInt | None = None
    """Most rows of a chunk; a row group of more is a chunk of its own."""
    per_file: bool = False
    """A chunk for each object, whatever its size."""
    per_partition: bool = False
    """A chunk for each Hive partition, whatever its size."""
    cross_partitions: bool = False
    """Chunks may span Hive partitions."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.per_file and self.per_partition:
            raise ValueError("give `per_file` or `per_partition`, not both")
        if self.per_partition and self.cross_partitions:
            raise ValueError("`per_partition` and `cross_partitions` exclude each other")
        return self


class Output(_Part):
    """Where the results go."""

    uri: Uri
    """The prefix, which holds nothing but published Parquet."""
    mode: Literal["error", "append", "overwrite", "overwrite-partitions"] = "error"
    """What to do about what is there already."""
    schema_: Literal["identical", "widen"] = Field(default="identical", alias="schema")
    """Whether a run's columns must be those that files in the output have. `widen`: it may also
    bring further columns, and types one of which holds the other (int32 and int64)."""
    compression: Literal["zstd", "snappy", "lz4", "gzip", "brotli", "uncompressed"] = "zstd"
    row_group_rows: PositiveInt | None = None
    """Rows in a row group. Default: the writer's."""
    keep_versions: NonNegativeInt = 1
    """Replaced versions that are kept for `rollback`."""


class Reduce(_Part):
    """How the chunks' results are brought together."""

    combine: Function
    """`module:function` of a list of LazyFrames to one of the same columns."""
    finalize: Function | None = None
    """`module:function` of the last LazyFrame to the result."""


class WindowRule(_Part):
    """How the input's partitions are cut into windows: what a backfill runs and commits by."""

    column: Annotated[str, Field(min_length=1)] | None = None
    """A Hive column of the input (a directory such as `ds=2024-02-29`)."""
    columns: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Instead: Hive columns that make up a date, from coarse to fine, such as
    `[year, month, day]`, or `[ds, hour]`."""
    grain: Literal["hour", "day", "month", "value"] = "day"
    """Length of a window; finer values are grouped. `value`: each value is a window."""
    timezone: str = "UTC"
    """IANA name of the zone whose hours, days and months are meant."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.column is None) == (not self.columns):
            raise ValueError("give `column`, or `columns` if several make up a date")
        try:
            self.windowing()
        except WindowError as error:
            raise ValueError(str(error)) from error
        return self

    def windowing(self) -> Windowing:
        """The same for the planner."""
        column, *further = self.columns or (self.column or "",)
        return Windowing(column, self.grain, self.timezone, tuple(further))


class Job(_Part):
    """One job, as its file says it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    """Letters, digits and `-_.`; part of run names."""
    input: Input
    chunks: Chunks = Chunks()
    transform: Function
    """`module:function`, LazyFrame to LazyFrame."""
    params: dict[str, JsonValue] = {}
    """Keyword arguments of the transform."""
    tables: tuple[Uri, ...] = ()
    """Tables (an object or a prefix) that the transform reads with `read_table`, beside those that
    planning finds by trying it on no rows. A run reads them in the version it was planned with."""
    output: Output
    retries: NonNegativeInt = 3
    """Tries after the first of a chunk whose error may pass."""
    rounds: PositiveInt = 3
    """Passes over what is left, each in smaller batches."""
    max_failures: Annotated[int | str | None, BeforeValidator(_limit)] = None
    """Stop when more chunks than this failed: a number or a share such as 5%."""
    chunk_timeout: Annotated[Seconds, Field(gt=0)] | None = None
    """Longest that a chunk may take, in seconds."""
    reduce: Reduce | None = None
    window: WindowRule | None = None
    """What a backfill goes by. Default: the output has one commit a run."""

    @model_validator(mode="after")
    def _windows(self) -> Self:
        if self.window is not None and self.chunks.cross_partitions:
            raise ValueError(
                "`window` and `chunks.cross_partitions` exclude each other: a chunk with rows of "
                "two windows could not be committed with either"
            )
        if self.window is not None and self.reduce is not None:
            raise ValueError(
                "`window` and `reduce` exclude each other: a reduce has one result, not one a "
                "window"
            )
        return self

    @model_validator(mode="after")
    def _apart(self) -> Self:
        output = self.output.uri.rstrip("/") + "/"
        if re.fullmatch(r"s3://[^/]+/", output):
            raise ValueError(f"output {self.output.uri} is a whole bucket; name a prefix in it")
        for uri in self.input.uri:
            source = uri.rstrip("/") + "/"
            if source.startswith(output) or output.startswith(source):
                raise ValueError(
                    f"input {uri} and output {self.output.uri} lie within each other: "
                    "the next run would read what this one wrote"
                )
        return self

    def to_yaml(self) -> str:
        """The job as a file that loads to an equal job; what equals its default is left out.

        Raises:
            JobError: the file would be larger than what is read back.
        """
        data = _plain(self.model_dump(by_alias=True, exclude_defaults=True))
        if len(self.input.uri) == 1:
            data["input"]["uri"] = self.input.uri[0]
        if "target" in data.get("chunks", {}):
            data["chunks"]["target"] = _exact_size(self.chunks.target)
        text = dump_yaml(data)
        if len(text.encode()) > MAX_BYTES:
            raise JobError(
                f"job {self.name} is larger than {MAX_BYTES:,} bytes as a file",
                hint="keep data in objects of its own, and name their URIs in params",
            )
        return text


def load_job(path: str | Path) -> Job:
    """Read a job file.

    Raises:
        JobError: The file is missing, is not YAML, or has a key that is unknown, missing or
            mistyped. The message names the file and the line.
    """
    return _validate(read_yaml(Path(path), JobError))


def parse_job(text: str, name: str = "job.yaml") -> Job:
    """Read a job from a file's text; `name` is for messages. Raises as `load_job`."""
    return _validate(parse_yaml(text, name, JobError))


def _validate(file: YamlFile) -> Job:
    try:
        return Job.model_validate(file.data)
    except ValidationError as problems:
        raise _job_error(file, problems) from None


def _job_error(file: YamlFile, problems: ValidationError) -> JobError:
    """All that is wrong with a file, from its top to its bottom."""
    found = []
    for detail in problems.errors():
        location = tuple(detail["loc"])
        words, hint = explain_error(detail, Job)
        found.append((file.line(location) or sys.maxsize, f"{file.where(location)}: {words}", hint))
    found.sort(key=lambda one: one[0])
    hints = [hint for _, _, hint in found if hint]
    return JobError("\n".join(line for _, line, _ in found), "\n".join(hints) or None)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Decimal) else value


def _exact_size(count: int) -> int | str:
    text = format_size(count)
    return text.replace(" ", "") if "." not in text and count % 1024 == 0 else count
