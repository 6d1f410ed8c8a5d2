"""Define the request for a plan, as a frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from partitioning.errors import TargetError
from partitioning.filters import Filter
from partitioning.windows import WindowFilter

MIB: Final = 2**20
_FIGURES_VERSION: Final = 3
"""Version of the figures read from footers: plans of another version share no footers."""


@dataclass(frozen=True, slots=True)
class PinnedFiles:
    """The files of one version of a table, which are planned instead of all objects of a prefix."""

    label: str
    """What they are, for messages."""
    directories: Mapping[str, str]
    """Directory with the Hive values of each file, by URI."""
    sizes: Mapping[str, int]
    """Bytes of each file, by URI."""
    hive_types: tuple[tuple[str, str], ...] = ()
    """(Hive column, type of `hive.HIVE_TYPES`) of all partition columns."""
    etags: Mapping[str, str] = field(default_factory=dict)
    """Version mark of each file whose version matters, without quotes, by URI."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The dataset to plan, and how to cut it into chunks.

    Raises:
        TargetError: The chunking is impossible or contradicts itself.
    """

    uri: str | tuple[str, ...]
    """Prefix, object, glob (`*`, `?`, `[a-z]`, `**`), or several of them. An object or prefix with
    exactly this name wins over the reading as a glob."""
    columns: tuple[str, ...] | None = None
    """Top-level columns that are read; None for all. They affect sizes only, never identity."""
    size_columns: tuple[str, ...] | None = None
    """Columns that the transform is known to read, for sizes only, if `columns` is None."""
    filter: Filter = ()
    """Filter on rows: an OR of ANDs of terms (see `partitioning.filters`)."""
    keep: WindowFilter | None = None
    """Windows of the objects to plan: footers of other objects are not read, and the plan does not
    name them. It neither filters rows nor changes the type of a column."""
    hive_types: tuple[tuple[str, str], ...] = ()
    """(Hive column, type of `hive.HIVE_TYPES`) instead of inferred types. They affect what a
    transform and a filter see; partitions are identified by the text of their folders."""
    pinned: PinnedFiles | None = None
    """The files to plan below the prefix `uri`; `include` and `exclude` then do not count."""
    include: tuple[str, ...] = ()
    """Globs of objects; empty means `*.parquet`, `*.parq` and `*.pq`. A pattern without a slash is
    matched with the last segment of a key, one with a slash with the key below the prefix."""
    exclude: tuple[str, ...] = ()
    """Globs of objects to leave out, as `include`."""
    schema: Literal["identical", "union", "first"] = "identical"
    """Schema rule. `union`: all columns; those that an object lacks are null. `first`: the columns
    of the first object; other columns are ignored, missing columns are null. For different types,
    `union` uses the narrowest type that holds both, and `first` the type of the first object; a
    value that does not fit it is an error."""
    types: tuple[tuple[str, str], ...] = ()
    """Types to read columns as (`partitioning.dtypes.parse_type`), regardless of the files; a value
    that does not fit is an error."""
    object_column: str | None = None
    """Name of an extra column with the URI of each row's object."""
    int96: Literal["us", "ns"] = "us"
    """Unit of times from INT96 columns. Nanoseconds end in the year 2262."""
    on_bad_object: Literal["fail", "skip"] = "fail"
    """Handling of objects that are not readable Parquet."""
    changed_only: bool = False
    """Plan only objects that are new or changed since the previous plan."""
    target: int = 128 * MIB
    """Target size of a chunk: decoded bytes of the columns that are read."""
    open_cost: int = 4 * MIB
    """Minimum bytes that an object counts in a chunk, to limit the number of small files per chunk
    (the default of Spark's openCostInBytes and Iceberg's open-file-cost)."""
    min_part: int = 16 * MIB
    """Minimum decoded bytes of a part, if a row group is cut. A row group is cut if it decodes to
    more than twice the target and to at least two such parts."""
    max_rows: int | None = None
    """Maximum number of rows of a chunk; a larger row group is a chunk by itself."""
    per_file: bool = False
    """Make one chunk per object, regardless of its size."""
    per_partition: bool = False
    """Make one chunk per Hive partition, regardless of its size."""
    cross_partitions: bool = False
    """Let chunks span Hive partitions."""
    footer_concurrency: int = 128
    """Number of footer reads in flight."""
    footer_limit: int = 64 * MIB
    """Maximum size of a footer in bytes; an object with a larger footer is bad."""
    first_read: int = 64 * 1024
    """Bytes of the first read of a footer; a larger footer takes a second read."""
    map_threshold: int = 20_000
    """Number of footers from which on a given mapper is used."""

    def __post_init__(self) -> None:
        for name, minimum in (("target", 1), ("max_rows", 1), ("open_cost", 0), ("min_part", 1),
                              ("footer_concurrency", 1), ("footer_limit", 12), ("first_read", 8),
                              ("map_threshold", 0)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise TargetError(f"{name} is {value}; it must be at least {minimum}")
        for name, other in (("per_partition", "per_file"), ("max_rows", "per_file"),
                            ("max_rows", "per_partition"),
                            ("cross_partitions", "per_partition")):  # fmt: skip
            if getattr(self, name) and getattr(self, other):
                raise TargetError(f"{name} contradicts {other}: choose one")

    def read_key(self) -> dict[str, Any]:
        """Return the settings that affect figures of row groups; equal keys share footers."""
        columns = self.columns if self.columns is not None else self.size_columns
        return {
            "figures": _FIGURES_VERSION,
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
            **({} if self.pinned is None else {"pinned": self.pinned.label}),
            **({} if self.keep is None else {"keep": self.keep.describe()}),
            **({"hive_types": dict(self.hive_types)} if self.hive_types else {}),
        }


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json(v) for v in value]
    return value if isinstance(value, int | float | str | None) else str(value)
