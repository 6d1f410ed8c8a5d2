"""Plan a dataset: list objects, read footers, prune, and pack chunks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from heapq import nsmallest
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

from partitioning.dtypes import arrow_schema_of, parse_type, polars_schema_of, unpack_schema
from partitioning.errors import (
    BadObjectsError,
    ColumnError,
    FilterError,
    PlanningError,
    SchemaMismatchError,
)
from partitioning.explain import PlanResult, explain
from partitioning.filters import Term, bind, check_columns
from partitioning.footers import FooterBatch, FooterGroup, FooterSpec, read_footers
from partitioning.listing import Listing, list_objects
from partitioning.model import Plan, Status
from partitioning.plan_builder import freeze, rules_of
from partitioning.pruning import PartitionFilter
from partitioning.reader import Reader
from partitioning.request import PlanRequest
from partitioning.schemas import Variant, resolve
from partitioning.schemas import check_columns as check_read_columns
from partitioning.snapshot import (
    Ints,
    Snapshot,
    add_batch,
    compare,
    reuse,
    take_snapshot,
)

MapStage = Callable[
    [Callable[[FooterGroup], FooterBatch], Sequence[FooterGroup]], Iterable[FooterBatch]
]
"""Function that maps a function over groups elsewhere, and yields the results in any order. The
function (with its reader), the groups and the results can be pickled."""
ChooseColumns = Callable[[pl.Schema], tuple[str, ...] | None]
"""Function that returns the columns that will be read, of a schema; None if it does not know."""
Progress = Callable[[int, int], None]
"""Function that is called with the number of footers read and to read."""

_GROUP_SIZE: Final = 1_000
"""Number of footers in a group for a mapper."""
_SAMPLES: Final = 3
"""Maximum number of objects whose footers are tried for the schema that columns are chosen from."""
_FAIL_FAST: Final = 16
"""Number of footers above which the first is read alone, to refuse a bad request early."""


def plan_dataset(
    request: PlanRequest,
    reader: Reader,
    *,
    previous: Plan | None = None,
    mapper: MapStage | None = None,
    progress: Progress | None = None,
    choose_columns: ChooseColumns | None = None,
) -> PlanResult:
    """Plan the chunks of a Parquet dataset.

    The same snapshot of objects and the same request give the same plan, byte for byte. It does not
    depend on the order of the listing, the concurrency, the machine, or whether footers were read
    or reused from `previous`.

    Args:
        request: The dataset, and how to cut it.
        reader: The store.
        previous: An earlier plan of the same input. Footers of objects with the same URI, ETag and
            size are reused if the columns and the filter are the same.
        mapper: Reads the footers elsewhere, if there are at least `request.map_threshold`.
        progress: Called with the number of footers read so far.
        choose_columns: Chooses `request.size_columns`, given the schema of one of the first objects
            (by URI) that can be read; not called if there is none.

    Returns:
        The plan, its figures, and the changes since `previous`.

    Raises:
        NoParquetError: The input has no Parquet object.
        BadObjectsError: Objects are not readable Parquet; all of them are named.
        SchemaMismatchError: Columns differ, and `request.schema` does not allow it.
        HiveTypeError: The declared type of a Hive column does not fit all its values.
        ColumnError: A requested column does not exist.
        FilterError: A filter term does not fit the columns.

    Example:
        >>> import fsspec, polars as pl
        >>> from partitioning import FsspecReader, PlanRequest, Term, plan_dataset
        >>> fs = fsspec.filesystem("memory")
        >>> for day in ("2024-01-01", "2024-01-02", "2024-01-03"):
        ...     with fs.open(f"/sales/day={day}/a.parquet", "wb") as file:
        ...         pl.DataFrame({"price": [1.5, 2.5, 3.5]}).write_parquet(file)
        >>> request = PlanRequest(
        ...     "memory://sales/", filter=((Term("day", ">=", "2024-01-02"),),)
        ... )
        >>> result = plan_dataset(request, FsspecReader(fs))
        >>> [dict(chunk.partition)["day"].isoformat() for chunk in result.plan.chunks()]
        ['2024-01-02', '2024-01-03']
        >>> result.explain.objects_pruned, result.plan.rows
        (1, 6)
        >>> result.plan.schema.names
        ['price', 'day']
    """
    begun = time.perf_counter()
    listing = list_objects(request, reader)
    if choose_columns is not None:
        sample = _sample_schema(request, reader, listing)
        columns = None if sample is None else choose_columns(sample)
        request = replace(request, size_columns=columns)
    snapshot = take_snapshot(
        listing, lenient=request.schema == "union", hive_types=dict(request.hive_types)
    )
    live, unsure = _prune(request, snapshot)
    changes, here, there = compare(snapshot, previous)
    if request.changed_only and previous is not None:
        left = here[snapshot.status[here] == Status.PLANNED]
        snapshot.status[left] = Status.UNCHANGED
    read_key = _read_key(request, snapshot)
    reused = 0
    if previous is not None and previous.input.get("read_key") == read_key:
        reused = reuse(snapshot, previous, here, there, rules_of(request).cut_from)
    footers = _Footers(request, reader, snapshot, live, mapper=mapper, progress=progress)
    footers.check_pruned(unsure)
    footers.read()
    schema, dtypes, shadowed = footers.check()
    starts, owner, groups = snapshot.ordered_groups()
    plan = freeze(
        request,
        snapshot,
        (starts, owner, groups),
        read_key=read_key,
        schema=schema,
        dtypes=dtypes,
        bad=footers.bad,
    )
    figures = explain(
        request,
        listing,
        snapshot,
        (owner, groups),
        plan,
        reading=(footers.done, reused, footers.requests),
        notes=[
            *(f"column {name!r} of the files is hidden by the Hive column" for name in shadowed),
            *footers.notes(),
        ],
        seconds=time.perf_counter() - begun,
    )
    return PlanResult(plan, figures, changes)


def _sample_schema(request: PlanRequest, reader: Reader, listing: Listing) -> pl.Schema | None:
    """Return the schema of one of the first objects that can be read; None if there is none."""
    request = replace(request, filter=(), size_columns=None)
    named = zip(listing.objects, listing.directories, strict=True)
    for info, directory in nsmallest(_SAMPLES, named, key=lambda pair: pair[0].uri):
        alone = Listing([info], [directory])
        with suppress(PlanningError):
            snapshot = take_snapshot(alone, lenient=True, hive_types=dict(request.hive_types))
            footers = _Footers(request, reader, snapshot, [()], mapper=None, progress=None)
            footers.read()
            return footers.check()[1]
    return None


def _prune(request: PlanRequest, snapshot: Snapshot) -> tuple[list[tuple[int, ...]], Ints]:
    """Mark objects that the partition values exclude.

    Returns:
        The live filter groups of each object, and the objects that are excluded only because a
        column is not in their path.
    """
    if not request.filter:
        return [()] * len(snapshot), np.zeros(0, np.int64)
    types = dict(zip(snapshot.hive.names, snapshot.hive.types, strict=True))
    decide = PartitionFilter(request.filter, types)
    live: list[tuple[int, ...]] = []
    ordinals = snapshot.partition.tolist()
    for index, ordinal in enumerate(ordinals):
        if index and ordinal == ordinals[index - 1]:
            live.append(live[-1])
        else:
            live.append(decide.live(snapshot.partition_values(index)))
    pruned = np.array([not groups for groups in live])
    snapshot.status[pruned] = Status.PRUNED
    missing = np.array(snapshot.hive.missing, bool).reshape(-1, len(snapshot)).any(axis=0)
    candidates = np.flatnonzero(pruned & missing).tolist()
    unsure = [index for index in candidates if decide.live(snapshot.path_values(index))]
    return live, np.array(unsure, np.int64)


def _read_key(request: PlanRequest, snapshot: Snapshot) -> dict[str, Any]:
    """Return the settings that affect the figures of a footer; equal keys share footers."""
    hive = {n: str(t) for n, t in zip(snapshot.hive.names, snapshot.hive.types, strict=True)}
    return {**request.read_key(), "partitions": hive if request.filter else sorted(hive)}


def _refuse_other_order(term: Term, dtype: pl.DataType) -> None:
    """Refuse to compare an Enum by order, unless its categories are in the order of texts."""
    if term.op not in ("<", "<=", ">", ">=") or not isinstance(dtype, pl.Enum):
        return
    if not dtype.categories.is_sorted():
        raise FilterError(
            f"{term}: the column's type orders its categories, terms order texts: filter it in the "
            "function"
        )


class _Footers:
    """Reads the footers that are needed and not yet known."""

    def __init__(
        self,
        request: PlanRequest,
        reader: Reader,
        snapshot: Snapshot,
        live: list[tuple[int, ...]],
        *,
        mapper: MapStage | None,
        progress: Progress | None,
    ) -> None:
        self._request, self._snapshot, self._live = request, snapshot, live
        self._mapper, self._progress = mapper, progress
        columns = request.columns if request.columns is not None else request.size_columns
        names = frozenset(t.column for group in request.filter for t in group)
        self._partitions = frozenset(snapshot.hive.names)
        spec = FooterSpec(
            columns=None if columns is None else frozenset(columns) | names,
            filter=request.filter,
            partitions=self._partitions,
            limit=request.footer_limit,
            first_read=request.first_read,
            concurrency=request.footer_concurrency,
            int96=request.int96,
            declared=frozenset(name for name, _ in request.types),
        )
        self._spec, self._reader = spec, reader
        self.done = 0
        """Number of footers read without an error."""
        self.requests = 0
        self.bad: list[tuple[int, int, str]] = []
        """(object, offset, reason)."""

    def read(self) -> None:
        """Read the footers.

        Raises:
            BadObjectsError: Some objects are bad, and the request does not skip them.
        """
        status = self._snapshot.status
        unknown = self._snapshot.counts < 0
        wanted = np.flatnonzero(unknown & (status == Status.PLANNED))
        if len(wanted) > _FAIL_FAST:
            self._take(wanted[:1], None)
            if self._snapshot.any_schema and self._request.schema != "union":
                self.check()
            wanted = wanted[1:]
        self._take(wanted, self._mapper)
        # If everything is pruned, read the schema from the first object that has one.
        for index in range(len(self._snapshot)):
            if self._snapshot.any_schema:
                break
            if unknown[index] and status[index] != Status.PLANNED:
                self._take(np.array([index]), None)
        self._handle_bad()

    def check_pruned(self, objects: Ints) -> None:
        """Check the files of objects that are pruned because a column is not in their path.

        Raises:
            SchemaMismatchError: The column is in a file.
        """
        self._take(objects, self._mapper)
        self._refuse_split_columns()
        self._snapshot.forget(objects)  # Pruned objects have no part in the dataset's schema.

    def _handle_bad(self) -> None:
        self.bad.sort()
        if not self.bad:
            return
        infos = self._snapshot.infos
        named = [(infos[i].uri, offset, reason) for i, offset, reason in self.bad]
        if self._request.on_bad_object == "fail" or not self._snapshot.any_schema:
            raise BadObjectsError(named)
        self._snapshot.status[[i for i, _, _ in self.bad]] = Status.SKIPPED

    def _take(self, wanted: Ints, mapper: MapStage | None) -> None:
        for batch in self._batches(wanted, mapper):
            add_batch(self._snapshot, wanted, batch)
            self.done += len(batch.positions)
            self.requests += batch.requests
            self.bad.extend((int(wanted[at]), *rest) for at, *rest in batch.errors)  # type: ignore[misc]

    def _batches(self, wanted: Ints, mapper: MapStage | None) -> Iterator[FooterBatch]:
        total = len(wanted)
        if not total:
            return
        if mapper is None or total < self._request.map_threshold:
            report = self._progress
            on_read = None if report is None else lambda done: report(done, total)
            yield read_footers(self._reader, self._spec, self._group(wanted, 0, total), on_read)
            return
        starts = range(0, total, _GROUP_SIZE)
        groups = [self._group(wanted, at, at + _GROUP_SIZE) for at in starts]
        done = 0
        for batch in mapper(partial(read_footers, self._reader, self._spec), groups):
            done += len(batch.positions) + len(batch.errors)
            if self._progress is not None:
                self._progress(done, total)
            yield batch

    def _group(self, wanted: Ints, start: int, stop: int) -> FooterGroup:
        objects = wanted[start:stop].tolist()
        infos = self._snapshot.infos
        return FooterGroup(
            start, tuple(infos[i] for i in objects), tuple(self._live[i] for i in objects)
        )

    def check(self) -> tuple[pa.Schema, pl.Schema, tuple[str, ...]]:
        """Return the dataset's schema in Arrow types and in Polars types, and hidden columns.

        A Hive column hides a file column of the same name.

        Raises:
            SchemaMismatchError, ColumnError, FilterError: As in `plan_dataset`.
        """
        self._refuse_split_columns()
        request = self._request
        declared = {name: parse_type(text) for name, text in request.types}
        files = resolve(self._variants(), request.schema, declared)
        shadowed = tuple(n for n in files if n in self._partitions)
        own = {n: t for n, t in files.items() if n not in self._partitions}
        hive = pa.schema(self._snapshot.hive.fields())
        self._add_object_column(own)
        schema = pa.schema([*arrow_schema_of(pl.Schema(own)), *hive])
        dtypes = pl.Schema({**own, **polars_schema_of(hive)})
        check_read_columns([*(request.columns or ()), *(request.size_columns or ())], schema.names)
        check_columns(request.filter, schema.names)
        for term in (t for group in request.filter for t in group):
            bind(term, schema.field(term.column).type)
            _refuse_other_order(term, dtypes[term.column])
        return schema, dtypes, shadowed

    def _refuse_split_columns(self) -> None:
        """Refuse a column that is in the path of some objects and in the files of others.

        The rows of the others would have nulls in it.
        """
        snapshot = self._snapshot
        if not any(map(any, snapshot.hive.missing)):
            return
        columns = [set(unpack_schema(schema)[0]) for schema in snapshot.schemas]
        for name, missing in zip(snapshot.hive.names, snapshot.hive.missing, strict=True):
            having = [kind for kind, names in enumerate(columns) if name in names]
            split = np.flatnonzero(np.array(missing) & np.isin(snapshot.schema, having))
            if len(split):
                other = snapshot.infos[missing.index(False)].uri
                raise SchemaMismatchError(
                    f"column {name!r} is in the path of {other}, but in the file of "
                    f"{snapshot.infos[split[0]].uri}, whose rows would be null"
                )

    def _add_object_column(self, own: dict[str, pl.DataType]) -> None:
        name = self._request.object_column
        if name is None:
            return
        if name in own or name in self._partitions:
            raise ColumnError(f"object_column {name!r} is a column of the dataset: choose another")
        if any(term.column == name for group in self._request.filter for term in group):
            raise FilterError(
                f"{name!r} is the object_column, which cannot be filtered: select objects with "
                "include and exclude"
            )
        own[name] = pl.String()

    def notes(self) -> list[str]:
        """Return notes on columns that are read as another type, with the number of objects."""
        snapshot = self._snapshot
        found: Counter[str] = Counter()
        kinds, counts = np.unique(snapshot.schema[snapshot.schema >= 0], return_counts=True)
        for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
            for note in unpack_schema(snapshot.schemas[kind])[1]:
                found[note] += count
        total = int(counts.sum())
        return [
            n if c == total else f"{n}, in {c:,} of {total:,} objects" for n, c in found.items()
        ]

    def _variants(self) -> list[Variant]:
        snapshot = self._snapshot
        known = np.flatnonzero(snapshot.schema >= 0)
        kinds, first, counts = np.unique(
            snapshot.schema[known], return_index=True, return_counts=True
        )
        found = []
        for place in np.argsort(first):
            kind = kinds[place]
            having = known[snapshot.schema[known] == kind][:2]
            found.append(
                Variant(
                    unpack_schema(snapshot.schemas[int(kind)])[0],
                    int(counts[place]),
                    tuple(snapshot.infos[i].uri for i in having.tolist()),
                )
            )
        return found
