"""Everything that shapes a plan, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from partitioning.errors import TargetError
from partitioning.filters import Filter
from partitioning.windows import WindowFilter

MIB: Final = 2**20
_FIGURES: Final = 2
"""Version of how footers are read: plans of another share no footers."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What to plan, and how to cut it.

    Raises:
        TargetError: the chunking is impossible or contradicts itself.
    """

    uri: str | tuple[str, ...]
    """A prefix, an object, a glob (`*`, `?`, `[a-z]`, `**`), or several of them. What exists
    under exactly that name wins over its reading as a glob."""
    columns: tuple[str, ...] | None = None
    """Top-level columns that are read; None is all. Shapes sizes only, never identity."""
    size_columns: tuple[str, ...] | None = None
    """With `columns` None: the columns that a transform was seen to read, for sizes only."""
    filter: Filter = ()
    """OR of ANDs of terms; see `partitioning.filters`."""
    keep: WindowFilter | None = None
    """Only objects whose Hive value lies in these windows: the others' footers are not read, and
    the plan does not name them. It is no filter of rows, and changes no column's type."""
    hive_types: tuple[tuple[str, str], ...] = ()
    """(Hive column, type of `hive.HIVE_TYPES`): instead of what its values look like. It decides
    what a transform and a filter see; a partition is identified by the text of its folder."""
    include: tuple[str, ...] = ()
    """Globs; empty takes `*.parquet`, `*.parq` and `*.pq`. A pattern without a slash is held
    against the last segment of a key, one with a slash against the key below the prefix."""
    exclude: tuple[str, ...] = ()
    """Globs of objects to leave out, as `include`."""
    schema: Literal["identical", "union", "first"] = "identical"
    """`union`: columns that an object lacks are null. `first`: the first object's columns count;
    others' further columns are ignored, lacking ones are null. Where types differ, `union` takes
    the narrowest that holds the values of both, and `first` the first one's, if each value either
    fits or is an error."""
    types: tuple[tuple[str, str], ...] = ()
    """Types that columns come as (`partitioning.dtypes.parse_type`), whatever they are in the
    files: each value either fits or is an error."""
    object_column: str | None = None
    """A column of this name has the URI of each row's object."""
    int96: Literal["us", "ns"] = "us"
    """Unit of the times that INT96 columns come as. Nanoseconds end in the year 2262."""
    on_bad_object: Literal["fail", "skip"] = "fail"
    """What an object that is not readable Parquet does to the plan."""
    changed_only: bool = False
    """Plan only the objects that are new or changed since the plan before."""
    target: int = 128 * MIB
    """Decoded bytes of a chunk, of the columns that are read."""
    open_cost: int = 4 * MIB
    """The least that an object counts in a chunk, in bytes, so that small files do not pile up
    (Spark's openCostInBytes and Iceberg's open-file-cost have this default)."""
    least_part: int = 16 * MIB
    """Decoded bytes of a part of a row group, at least, when one is cut. A row group is cut if it
    decodes to more than twice the target and to two such parts."""
    max_rows: int | None = None
    """Rows of a chunk, at most; a larger row group is a chunk of its own."""
    per_file: bool = False
    """One chunk an object, whatever its size."""
    per_partition: bool = False
    """One chunk a Hive partition, whatever its size."""
    cross_partitions: bool = False
    """Let a chunk hold several partitions' rows."""
    footer_concurrency: int = 128
    """Footer reads in flight."""
    footer_limit: int = 64 * MIB
    """Bytes; an object that claims a larger footer is bad."""
    first_read: int = 64 * 1024
    """Bytes of the first suffix read; a larger footer takes a second."""
    map_threshold: int = 20_000
    """Footers to read from which a mapper is used, where there is one."""

    def __post_init__(self) -> None:
        for name, least in (("target", 1), ("max_rows", 1), ("open_cost", 0), ("least_part", 1),
                            ("footer_concurrency", 1), ("footer_limit", 12), ("first_read", 8),
                            ("map_threshold", 0)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise TargetError(f"{name} is {value}; it must be at least {least}")
        for name, other in (("per_partition", "per_file"), ("max_rows", "per_file"),
                            ("max_rows", "per_partition"),
                            ("cross_partitions", "per_partition")):  # fmt: skip
            if getattr(self, name) and getattr(self, other):
                raise TargetError(f"{name} contradicts {other}: choose one")

    def read_key(self) -> dict[str, Any]:
        """Return what decides the figures kept per row group: plans that agree share footers."""
        columns = self.columns if self.columns is not None else self.size_columns
        return {
            "figures": _FIGURES,
            "int96": self.int96,
            "types": dict(self.types),
            "columns": None if columns is None else sorted(columns),
            "filter": [[str(term) for term in group] for group in self.filter],
        }

    def describe(self) -> dict[str, Any]:
        """Return the request as JSON values, for `Plan.input`."""
        chunks = ("target", "open_cost", "max_rows", "per_file", "per_partition",
                  "cross_partitions")  # fmt: skip
        return {
            "uri": list(self.uri) if isinstance(self.uri, tuple) else self.uri,
            "columns": None if self.columns is None else list(self.columns),
            "filter": [[[t.column, t.op, _json(t.value)] for t in group] for group in self.filter],
            "include": list(self.include),
            "exclude": list(self.exclude),
            "schema": self.schema,
            "on_bad_object": self.on_bad_object,
            "changed_only": self.changed_only,
            "chunks": {name: getattr(self, name) for name in chunks},
            "read_key": self.read_key(),
            **({} if self.keep is None else {"keep": self.keep.describe()}),
            **({"hive_types": dict(self.hive_types)} if self.hive_types else {}),
        }


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json(v) for v in value]
    return value if isinstance(value, int | float | str | None) else str(value)
