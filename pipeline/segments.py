"""Segments, which workers append to a ledger, and bases, which hold many: bytes and frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import zstandard

from partitioning.tablefile import TableFile, pack_tables
from pipeline.records import COMPLETIONS, FAILURES, Completion, Failure, Segment, digest_of

EMPTY = Segment(COMPLETIONS.to_frame(), FAILURES.to_frame(), {})

_ARROW: dict[pl.DataType | type[pl.DataType], pa.DataType] = {
    pl.String: pa.large_string(),
    pl.Int64: pa.int64(),
    pl.Float64: pa.float64(),
    pl.Boolean: pa.bool_(),
    pl.List(pl.String): pa.large_list(pa.large_string()),
}


def pack_segment(entries: Sequence[Completion | Failure], schemas: Iterable[str] = ()) -> bytes:
    """Completions and failures as lines of JSON, compressed.

    Args:
        entries: Completions and failures.
        schemas: Of the completions' outputs, as JSON.
    """
    lines = [{"kind": "schema", "columns": schema} for schema in schemas]
    lines += [_line(entry) for entry in entries]
    return zstandard.compress(b"\n".join(map(orjson.dumps, lines)))


def unpack_segments(packed: Iterable[bytes]) -> Segment:
    """What some segments hold, as one."""
    rows: dict[str, list[dict[str, Any]]] = {"completion": [], "failure": [], "schema": []}
    for data in packed:
        for line in zstandard.decompress(data).splitlines():
            entry = orjson.loads(line)
            rows[entry.pop("kind")].append(entry)
    return Segment(
        _frame(rows["completion"], COMPLETIONS),
        _frame(rows["failure"], FAILURES),
        {digest_of(one["columns"]): one["columns"] for one in rows["schema"]},
    )


def joined(segments: Sequence[Segment]) -> Segment:
    """Several as one."""
    return Segment(
        pl.concat([one.completions for one in segments]),
        pl.concat([one.failures for one in segments]),
        {digest: text for one in segments for digest, text in one.schemas.items()},
    )


def pack_base(whole: Segment, names: Iterable[str]) -> bytes:
    """A base: what the segments of these names hold."""
    tables = {
        "completions": whole.completions.to_arrow(),
        "failures": whole.failures.to_arrow(),
        "segments": pl.DataFrame({"name": list(names)}, schema={"name": pl.String}).to_arrow(),
    }
    return pack_tables(tables, {"schemas": whole.schemas})


def unpack_base(data: bytes) -> tuple[Segment, frozenset[str]]:
    """What a base holds, and the names of the segments that it stands for."""
    file = TableFile(data)
    completions, failures = (
        pl.DataFrame(pl.from_arrow(file.table(part))).cast(dict(schema))  # type: ignore[arg-type]
        for part, schema in (("completions", COMPLETIONS), ("failures", FAILURES))
    )
    names = frozenset(file.table("segments")["name"].to_pylist())
    return Segment(completions, failures, file.meta["schemas"]), names


def _line(entry: Completion | Failure) -> dict[str, Any]:
    """An entry as JSON's own types; `asdict` would copy each value deeply, for nothing."""
    values = {name: getattr(entry, name) for name in entry.__slots__}
    return {"kind": type(entry).__name__.lower(), **values}


def _frame(rows: list[dict[str, Any]], schema: pl.Schema) -> pl.DataFrame:
    """Rows as a frame, by way of Arrow.

    Polars by itself makes each list a series: 200 rows take three times as long, 2,000 six times.
    """
    fields = pa.schema([(name, _ARROW[dtype]) for name, dtype in schema.items()])
    return pl.DataFrame(pl.from_arrow(pa.Table.from_pylist(rows, schema=fields)))
