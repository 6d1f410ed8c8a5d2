"""The reduce plan of a run: which partials its reduce combines.

A late copy of a batch may store other partials of the same chunks at any time. So the driver stores
the plan, once, when all chunks are done; workers cannot write it. From then on its partials count.
If some of them are lost later, their chunks are mapped again and another plan, with a higher
number, takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

import polars as pl

from partitioning.errors import PlanFormatError
from partitioning.table_file import TableFile, pack_tables

_PARTIALS: dict[str, Any] = {"uri": pl.String, "index": pl.List(pl.Int64)}
PARTIALS: Final = pl.Schema(_PARTIALS)
"""One row per partial, with the numbers of its chunks in the run's plan; each chunk is in one."""


@dataclass(frozen=True, slots=True)
class ReducePlan:
    """A reduce plan."""

    partials: pl.DataFrame
    """Partials by URI (schema PARTIALS)."""

    @classmethod
    def of(cls, completions: pl.DataFrame) -> Self:
        """Make the plan of the partials that count, of a run whose chunks are all done."""
        return cls(completions.group_by("uri").agg(pl.col("index").sort()).sort("uri"))

    def pack(self) -> bytes:
        """Return the bytes to store."""
        return pack_tables({"partials": self.partials.to_arrow()}, {})

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the bytes that `pack` returned.

        Raises:
            PlanFormatError: they are damaged.
        """
        partials = pl.DataFrame(pl.from_arrow(TableFile(data).table("partials")))
        if partials.schema != PARTIALS:
            raise PlanFormatError("damaged reduce plan: its partials have other columns")
        return cls(partials)

    def choose(self, completions: pl.DataFrame) -> pl.Series | None:
        """Mark one completion per planned chunk, in its planned partial; None if one is missing."""
        planned = self.partials.explode("index", empty_as_null=False)
        numbered = completions.with_row_index("row")
        own = numbered.join(planned, on=["uri", "index"], how="semi")
        own = own.sort("row").unique("index", keep="first")
        if own.height < planned.height:
            return None
        return numbered["row"].is_in(own["row"].implode())
