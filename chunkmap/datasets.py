"""What is read and mapped: `read(…).map(…).write(…)` makes a job."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from chunkmap.driving import hinting
from chunkmap.functions import Functions
from chunkmap.jobs import Job
from pipeline.errors import JobError

if TYPE_CHECKING:
    import polars as pl

Function: TypeAlias = "Callable[..., Any] | str"
"""A function from LazyFrame to LazyFrame, or its name: `module:function`."""
Filters: TypeAlias = "pl.Expr | Sequence[Any]"


def read(
    uri: str | Path | Sequence[str | Path] | None = None,
    *,
    filter: Filters | None = None,
    columns: str | Sequence[str] | None = None,
    table: str | None = None,
    **options: Any,
) -> Dataset:
    """Name a Parquet dataset; nothing is read yet.

    Args:
        uri: Prefix or list of prefixes, in S3 or on disk, which may have Hive partitions.
        filter: Condition on rows: an expression of Polars, or terms as in a job file, e.g.
            `[["ds", ">=", date(2024, 1, 1)]]`. Comparisons of columns with values leave out
            partitions and row groups when the run is planned; NaN matches `!=` only. What else an
            expression says, such as the order of texts that are no dates, filters the rows of each
            chunk.
        columns: Columns that the function may use; default those that it needs.
        table: Prefix of a Delta table to read, instead of `uri`.
        options: Further keys of `input` in the job file, e.g. `hive_types`.
    """
    source: dict[str, Any] = {**options}
    if table is not None:
        source["table"] = table
    if uri is not None:
        uris = [uri] if isinstance(uri, str | Path) else uri
        source["uri"] = tuple(map(str, uris))
    if columns is not None:
        source["columns"] = _names(columns)
    rest = None
    if filter is not None:
        terms, rest = _split(filter)
        if terms:
            source["filter"] = terms
    return Dataset(source, rest)


def _split(condition: Any) -> tuple[Any, pl.Expr | None]:
    import polars as pl

    if not isinstance(condition, pl.Expr):
        return condition, None
    from partitioning.filter_terms import split_filter

    groups, rest = split_filter(condition)
    return [[[term.column, term.op, term.value] for term in group] for group in groups], rest


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset to be mapped; made by `read`."""

    source: Mapping[str, Any]
    """The section `input` of the job."""
    condition: pl.Expr | None = None
    """What of the filter is applied to the rows of each chunk."""

    def map(
        self,
        function: Function,
        *,
        params: Mapping[str, Any] | None = None,
        retries: int | None = None,
        timeout: float | str | None = None,
        chunks: str | int | Mapping[str, Any] | None = None,
        concurrency: int | None = None,
        resources: Mapping[str, float] | None = None,
        **options: Any,
    ) -> Mapped:
        """Map a function over the chunks of the dataset.

        Args:
            function: A function from LazyFrame to LazyFrame, or its name `module:function`. One of
                an allowed module (`transforms.allow`) goes by name; others (lambdas, closures,
                functions of a notebook) by value, where the settings allow that. Of a class with
                `__call__`, each process makes one instance, which keeps e.g. a model or a client.
            params: Keyword arguments of the function: JSON values, dates and times.
            retries: Retries of a chunk after transient errors; default 3.
            timeout: Maximum duration of a chunk, in seconds or such as "5m".
            chunks: Target size of a chunk such as "128MiB", or the section `chunks` of a job file.
            concurrency: Maximum number of chunks that a worker process maps at a time, e.g. because
                they share a device; on this machine alone, maximum number of processes that map,
                each of which makes an instance of a class.
            resources: Dask resources that each batch needs of its worker, such as `{"GPU": 1}`;
                workers offer them by `dask.resources`.
            options: Further keys of the job file, e.g. `max_failures="5%"` or `checks={…}`.
        """
        keys: dict[str, Any] = {"params": dict(params or {}), **options}
        if retries is not None:
            keys["retries"] = retries
        if timeout is not None:
            keys["chunk_timeout"] = timeout
        if chunks is not None:
            keys["chunks"] = chunks if isinstance(chunks, Mapping) else {"target": chunks}
        if concurrency is not None:
            keys["concurrency"] = concurrency
        if resources is not None:
            keys["resources"] = dict(resources)
        return Mapped(self, function, keys)

    def add_columns(
        self,
        function: Function,
        *,
        keep: str | Sequence[str] = "all",
        rename: Mapping[str, str] | None = None,
        max_garbage: str | None = None,
        **options: Any,
    ) -> Mapped:
        """Map a function that returns only new or replaced columns; keep others as they are.

        The bytes of kept columns are neither decoded nor sent over the network: where input and
        output are in the same object store, it copies them itself. There is one file for each of
        the input.

        Args:
            function: Function of `map`. It returns one row for each row of its input, in its
                order, e.g. `lambda lf: lf.select(total=pl.col("price") * pl.col("count"))`.
            keep: Columns of the input that are kept; `all` keeps all.
            rename: New names of kept columns, by the old one.
            max_garbage: Maximum share of a file that dropped and replaced columns may leave
                behind, e.g. "20%"; above it the file is rewritten.
            options: Further arguments of `map`.
        """
        output: dict[str, Any] = {"keep": keep if keep == "all" else _names(keep)}
        if rename:
            output["rename"] = dict(rename)
        if max_garbage is not None:
            output["max_garbage"] = max_garbage
        return replace(self.map(function, **options), output=output)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A dataset with the function that is mapped over it; made by `Dataset.map`."""

    dataset: Dataset
    function: Function
    keys: Mapping[str, Any]
    """Further keys of the job."""
    combine: Function | None = None
    finalize: Function | None = None
    then_function: Function | None = None
    then_keys: Mapping[str, Any] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the section `output` that belong to the map."""

    def reduce(self, combine: Function, finalize: Function | None = None) -> Mapped:
        """Combine the results of all chunks into one.

        Args:
            combine: Function from a list of LazyFrames to one with the same columns.
            finalize: Function from the last LazyFrame to the result.
        """
        return replace(self, combine=combine, finalize=finalize)

    def then(
        self,
        function: Function,
        *,
        by: str | Sequence[str] = (),
        params: Mapping[str, Any] | None = None,
        max_groups: int | None = None,
    ) -> Mapped:
        """Map another function over groups of the reduced result.

        Args:
            function: Function from the LazyFrame of one group to a LazyFrame.
            by: Columns whose values make up a group; default each row is one.
            params: Keyword arguments of the function.
            max_groups: Maximum number of groups that are mapped, retried and stored together.
        """
        keys: dict[str, Any] = {"by": _names(by), "params": dict(params or {})}
        if max_groups is not None:
            keys["max_groups"] = max_groups
        return replace(self, then_function=function, then_keys=keys)

    def write(
        self, uri: str | Path, *, mode: str = "error", name: str | None = None, **options: Any
    ) -> Job:
        """Name the output; nothing is written before the job runs.

        Args:
            uri: Prefix of the output, in S3 or on disk.
            mode: Files that the output has already: `error` refuses, `append` keeps them,
                `overwrite` replaces all, `overwrite-partitions` those of the same partitions.
            name: Name of the job; default that of the function.
            options: Further keys of `output` in the job file, e.g. `partition_by=["ds"]`.

        Raises:
            JobError: Keys do not fit together, or a function cannot be sent to workers.
            TransformNotAllowedError: The settings do not allow a function.
        """
        return self.to_job({"uri": str(uri), "mode": mode, **self.output, **options}, name)

    def to_job(self, output: Mapping[str, Any], name: str | None = None) -> Job:
        """Make the job with this section `output`; arguments otherwise as of `write`."""
        with hinting():
            return self._job(output, name)

    def _job(self, output: Mapping[str, Any], name: str | None) -> Job:
        functions = Functions()
        first = functions.add(self.function, self.dataset.condition)
        keys: dict[str, Any] = {
            "name": name or _job_name(first),
            "input": dict(self.dataset.source),
            "transform": first,
            **self.keys,
            "output": dict(output),
        }
        if self.combine is not None:
            finalize = None if self.finalize is None else functions.add(self.finalize)
            keys["reduce"] = {"combine": functions.add(self.combine), "finalize": finalize}
        if self.then_function is not None:
            if self.combine is None:
                raise JobError("`then` maps groups of a reduced result: call `reduce` before it")
            keys["then"] = {"function": functions.add(self.then_function), **self.then_keys}
        return Job.from_keys(keys, functions)

    def collect(self, limit: str | int = "1GB") -> pl.DataFrame:
        """Map on this machine, and return the result without storing it. See `Job.collect`."""
        return self.to_job({"uri": "collected/", **self.output}).collect(limit)


def _names(columns: str | Sequence[str]) -> tuple[str, ...]:
    """Return names of columns; a text is one name, not a sequence of letters."""
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _job_name(function: str) -> str:
    """Return a name of a job for a function."""
    return re.sub(r"^[^A-Za-z0-9]+", "", function.rpartition(":")[2])[:100] or "map"
