"""Checks of a job's result, which are made before it is published."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, WithJsonSchema, model_validator

from pipeline.config.job_part import (
    SHARE_PATTERN,
    SHARE_SCHEMA,
    Function,
    Part,
    check_limit,
)
from pipeline.config.units import Seconds
from pipeline.config.yaml_file import nearest

Name = Annotated[str, Field(min_length=1, max_length=200)]
Severity = Literal["warn", "block"]


def _share(value: Any) -> Any:
    if value is None or (isinstance(value, str) and re.fullmatch(SHARE_PATTERN, value)):
        return value
    raise ValueError(f"{value!r} is not a share such as 90%")


def _tolerance(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and re.fullmatch(SHARE_PATTERN, value):
        return value
    raise ValueError(f"{value!r} is neither a number of at least 0 nor a share such as 1%")


_SHARE_TEXT: dict[str, Any] = {"type": "string", "pattern": SHARE_PATTERN}
Share = Annotated[str, BeforeValidator(_share), WithJsonSchema(_SHARE_TEXT)]
Tolerance = Annotated[
    float | str,
    BeforeValidator(_tolerance),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, _SHARE_TEXT]}),
]


def share_of(text: str) -> float:
    """Return a share such as `90%` as a number."""
    return float(text.rstrip("% ")) / 100


class _RunCheck(Part):
    name: Name | None = Field(default=None, examples=["one row per order"])
    """Name of the check in messages and reports. Default: what it checks."""
    severity: Severity = Field(default="block", examples=["warn"])
    """Effect of a failed check: nothing is published (`block`), or a note in the report
    (`warn`)."""

    @property
    def title(self) -> str:
        """Name of the check, given or made."""
        return self.name or self._title()

    def _title(self) -> str:
        raise NotImplementedError


class UniqueCheck(_RunCheck):
    """No two rows have the same values in some columns."""

    check: Literal["unique"] = Field(examples=["unique"])
    """Kind of the check."""
    columns: tuple[Name, ...] = Field(min_length=1, examples=[["order_id", "line"]])
    """Columns of the key. Nulls are equal to each other."""

    def _title(self) -> str:
        return f"unique({', '.join(self.columns)})"


class FreshnessCheck(_RunCheck):
    """The latest value of a column is not too old."""

    check: Literal["freshness"] = Field(examples=["freshness"])
    """Kind of the check."""
    column: Name = Field(examples=["updated_at"])
    """Column of dates or times. Times without a zone are UTC."""
    within: Annotated[Seconds, Field(gt=0)] = Field(examples=["2d"])
    """Maximum age of the latest value when the run was planned."""

    def _title(self) -> str:
        return f"freshness({self.column})"


class RowCountCheck(_RunCheck):
    """The number of rows is in a range."""

    check: Literal["row_count"] = Field(examples=["row_count"])
    """Kind of the check."""
    min: NonNegativeInt | None = Field(default=None, examples=[1])
    """Minimum number of rows."""
    max: NonNegativeInt | None = Field(default=None, examples=[1_000_000])
    """Maximum number of rows."""
    of_last: Share | None = Field(default=None, examples=["90%"])
    """Minimum number of rows as a share: of the rows that the run replaces, or in the modes
    `append` and `error` of the rows of the last run."""

    @model_validator(mode="after")
    def _limits(self) -> Self:
        if self.min is None and self.max is None and self.of_last is None:
            raise ValueError("set `min`, `max` or `of_last`")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"`min` ({self.min:,}) is above `max` ({self.max:,})")
        return self

    def _title(self) -> str:
        return "row_count"


class TotalCheck(_RunCheck):
    """The sum of a column is as expected."""

    check: Literal["total"] = Field(examples=["total"])
    """Kind of the check."""
    column: Name = Field(examples=["cents"])
    """Column of numbers."""
    expected: float | Literal["last"] = Field(default="last", examples=[125_000])
    """Expected sum, or `last` for that of the last published run with this check."""
    tolerance: Tolerance = Field(default=0.0, examples=["1%"])
    """Maximum difference: a number, or a share of the expected sum."""

    def _title(self) -> str:
        return f"total({self.column})"


class NotNullCheck(_RunCheck):
    """Columns have values."""

    check: Literal["not_null"] = Field(examples=["not_null"])
    """Kind of the check."""
    columns: tuple[Name, ...] = Field(min_length=1, examples=[["customer", "cents"]])
    """Columns, each of which is checked by itself."""
    share: Share = Field(default="100%", examples=["99.5%"])
    """Minimum share of rows with a value."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if share_of(self.share) > 1:
            raise ValueError(f"`share`: {self.share!r} is above 100%")
        return self

    def _title(self) -> str:
        return f"not_null({', '.join(self.columns)})"


class SqlCheck(_RunCheck):
    """A query finds no row. Needs DuckDB (the extra `checks`)."""

    check: Literal["sql"] = Field(examples=["sql"])
    """Kind of the check."""
    query: Annotated[str, Field(min_length=1, max_length=20_000)] = Field(
        examples=["SELECT day, sum(cents) FROM result GROUP BY day HAVING sum(cents) < 0"]
    )
    """Query in DuckDB's SQL for what is wrong; the result is the table `result`."""
    columns: tuple[Name, ...] | None = Field(
        default=None, min_length=1, examples=[["day", "cents"]]
    )
    """Columns of `result` that the query uses, which are stored once more until the run is
    published. Default: all."""

    def _title(self) -> str:
        text = " ".join(self.query.split())
        return f"sql({text if len(text) <= 60 else text[:59] + '…'})"


RunCheck = Annotated[
    UniqueCheck | FreshnessCheck | RowCountCheck | TotalCheck | NotNullCheck | SqlCheck,
    Field(discriminator="check"),
]
_KINDS: dict[str, type[_RunCheck]] = {
    "unique": UniqueCheck,
    "freshness": FreshnessCheck,
    "row_count": RowCountCheck,
    "total": TotalCheck,
    "not_null": NotNullCheck,
    "sql": SqlCheck,
}


def _known(value: Any) -> Any:
    """Refuse unknown kinds and keys of checks, with the near ones."""
    if not isinstance(value, dict):
        return value
    kind = value.get("check")
    if not isinstance(kind, str) or kind not in _KINDS:
        kinds = ", ".join(_KINDS)
        raise ValueError(f"`check` is the kind of the check: {kinds}; found {kind!r}")
    known = list(_KINDS[kind].model_fields)
    for key in value:
        if key not in known:
            match = nearest(str(key), known)
            near = f"did you mean `{match}`?" if match else f"known keys: {', '.join(known)}"
            raise ValueError(f"unknown key `{key}` of the check {kind}; {near}")
    return value


def _row_limit(value: Any) -> int | str | None:
    return check_limit(value, "rows")


class RowChecks(Part):
    """Rules for each row, as a schema of dataframely. Needs the extra `checks`."""

    schema_: Function = Field(alias="schema")
    """Schema of the result, as `module:Class`: a subclass of `dataframely.Schema`. It is applied to
    the result of each chunk, so that a rule about several rows, such as a primary key, sees one
    chunk. Other columns of the result are allowed."""
    severity: Literal["warn", "quarantine", "block"] = "block"
    """Effect of rows that break rules: their chunk fails (`block`), they are left out and kept next
    to the output (`quarantine`), or they are counted (`warn`)."""
    max_quarantined: Annotated[
        int | str | None, BeforeValidator(_row_limit), WithJsonSchema(SHARE_SCHEMA)
    ] = None
    """Maximum number of rows in quarantine, or share of all rows of the result such as 1%; with
    more, nothing is published."""

    @model_validator(mode="after")
    def _limits_quarantine(self) -> Self:
        if self.max_quarantined is not None and self.severity != "quarantine":
            raise ValueError("`max_quarantined` needs `severity: quarantine`")
        return self

    @property
    def title(self) -> str:
        """Name of the check."""
        return f"rows({self.schema_})"


def _rows_of(value: Any) -> Any:
    return {"schema": value} if isinstance(value, str) else value


class Checks(Part):
    """Checks of the result. Nothing that a blocking check refuses is ever visible."""

    rows: Annotated[
        RowChecks | None,
        BeforeValidator(_rows_of, json_schema_input_type=RowChecks | Function | None),
    ] = None
    run: tuple[Annotated[RunCheck, BeforeValidator(_known)], ...] = ()
    """Checks of the whole result of a run (in a backfill: of each window), before it is published.
    Each is a mapping with `check` and the keys of that kind: `unique` (`columns`), `freshness`
    (`column`, `within`), `row_count` (`min`, `max`, `of_last`), `total` (`column`, `expected`,
    `tolerance`), `not_null` (`columns`, `share`) or `sql` (`query`, `columns`); and, for all,
    `severity` (`block` or `warn`) and `name`."""

    @property
    def is_empty(self) -> bool:
        """Whether there are none."""
        return not self.run and self.rows is None

    @model_validator(mode="after")
    def _names(self) -> Self:
        titles = [check.title for check in self.run]
        twice = next((title for title in titles if titles.count(title) > 1), None)
        if twice is not None:
            raise ValueError(f"two checks are called {twice!r}: give one of them a `name`")
        return self


def checks_of(value: Any) -> Any:
    """Read the short form of checks: the schema of rows."""
    return {"rows": value} if isinstance(value, str) else value
