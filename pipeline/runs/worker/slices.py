"""Cut the result of a chunk by the folders of its files, and store the slices as one object.

A run whose files are merged (`output.partition_by`, `output.file_bytes`) keeps each chunk's result
like this until all chunks are done. Layout of the object: the slices as Arrow IPC streams, one
after the other; an index of them, also a stream; the SHA-256 of the index; its length as 8
little-endian bytes; and magic bytes. So one request reads the index, and one reads a slice.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import polars as pl

from partitioning.hive_paths import NULL_VALUE, quote_value
from pipeline.errors import PartitionColumnError, PartitionLimitError
from pipeline.report.humanize import plural
from pipeline.runs.ledger.keys import folder_of
from pipeline.runs.worker.encoding import OLDEST, bytes_of

MAGIC: Final = b"CMSLICE1"
SLICE_BYTES: Final = 8 << 20
"""Maximum bytes of a slice in memory, unless a row is larger."""
SAMPLES: Final = 16
"""Maximum number of sort keys of a slice that its index holds, spread evenly over its rows."""
TAIL_BYTES: Final = 64 << 10
"""Bytes at the end of an object that are read first; most have their whole index there."""
MAX_INDEX: Final = 256 << 20
"""Maximum bytes of an index: that of 10,000 partitions has about 2 MB."""
_ENDS: Final = 32 + 8 + len(MAGIC)
_OF_CHUNK: Final = "the result of a chunk"
_TEXTS: Final = (pl.String, pl.Categorical, pl.Enum)
_EXACT: Final = (*_TEXTS, pl.Boolean, pl.Date, pl.Null)
"""Types, beside integers, whose values the name of a folder holds exactly."""

Ranges = Callable[[Sequence[tuple[int, int]]], Sequence[bytes | memoryview]]
"""Function that reads half-open byte ranges of one object."""


# -- split by partition -----------------------------------------------------------------------


def split(frame: pl.DataFrame, names: Sequence[str], limit: int) -> list[tuple[str, pl.DataFrame]]:
    """Split a result by the values of some columns.

    Args:
        frame: The result.
        names: Its partition columns.
        limit: Maximum number of partitions.

    Returns:
        Folder (with a slash at its end) and rows of each partition, without the partition columns.
        Rows keep their order.

    Raises:
        PartitionColumnError: a folder cannot hold a value, or no other column is left.
        PartitionLimitError: there are more partitions.
    """
    for name in names:
        _refuse_type(frame.get_column(name))
    if len(names) == frame.width and frame.height:
        raise PartitionColumnError(
            f"the result has no columns but {', '.join(names)} (output.partition_by), which are in "
            "the keys of the output: a file without columns has no rows. Return another column too"
        )
    folders, codes = [""], pl.repeat(0, frame.height, dtype=pl.Int64, eager=True)
    for name in names:
        column = _plain(frame.get_column(name))
        values = column.unique().sort()
        refuse_many(len(values), limit, _OF_CHUNK)
        raws = [_raw(name, text) for text in values.cast(pl.String)]
        known = pl.DataFrame({"value": values, "rank": range(len(values))})
        ranks = (
            column.alias("value")
            .to_frame()
            .join(known, on="value", how="left", nulls_equal=True, maintain_order="left")["rank"]
        )
        both = codes * len(values) + ranks
        distinct = both.unique().sort()
        refuse_many(len(distinct), limit, _OF_CHUNK)
        pairs = (divmod(code, len(values)) for code in distinct)
        folders = [f"{folders[above]}{folder_of(name, raws[at])}/" for above, at in pairs]
        codes = distinct.search_sorted(both).cast(pl.Int64) if len(both) else both
    if not frame.height:
        return []
    order = codes.alias("code").to_frame().with_row_index("row").sort("code", maintain_order=True)
    # By position: `drop` would take a name such as `*` or `^k$` as a pattern.
    kept = [at for at, name in enumerate(frame.columns) if name not in names]
    ordered = frame.select(pl.nth(kept))[order["row"]]
    parts, start = [], 0
    for code, rows in order["code"].rle().struct.unnest().select("value", "len").iter_rows():
        parts.append((folders[code], ordered[start : start + rows]))
        start += rows
    return parts


def _refuse_type(column: pl.Series) -> None:
    kind = column.dtype
    if kind in _EXACT or (kind.is_integer() and kind not in (pl.Int128, pl.UInt128)):
        return
    raise PartitionColumnError(
        f"column {column.name!r} is of type {kind}, of which the name of a folder does not hold "
        "every value exactly (output.partition_by): cast it in the transform to text, an integer "
        f"or a date, e.g. pl.col({column.name!r})"
        + (".dt.date()" if isinstance(kind, pl.Datetime) else ".cast(pl.String)")
    )


def _plain(column: pl.Series) -> pl.Series:
    return column.cast(pl.String) if column.dtype in (*_TEXTS, pl.Null) else column


def refuse_many(count: int, limit: int, of: str) -> None:
    """Raise PartitionLimitError if a result has more partitions than the job allows.

    Args:
        count: Number of partitions.
        limit: Maximum number of them.
        of: What has them, for the message.
    """
    if count > limit:
        raise PartitionLimitError(
            f"{of} has {plural(count, 'partition')} (output.partition_by), more than the "
            f"{limit:,} of output.max_partitions",
            hint="partition by coarser values, e.g. months instead of days, or raise "
            "output.max_partitions",
        )


def _raw(name: str, text: str | None) -> str:
    """Spell a value as the name of a folder; readers must get the same value back."""
    if text is None:
        return NULL_VALUE
    if text in ("", NULL_VALUE):
        shown = "an empty text" if not text else f"the text {text!r}"
        raise PartitionColumnError(
            f"column {name!r} contains {shown}, which readers take for a null or refuse as the "
            "name of a folder (output.partition_by): replace it in the transform"
        )
    return quote_value(text)


# -- sort keys --------------------------------------------------------------------------------


def sort_key(column: pl.Series) -> pl.Series | None:
    """Return values that compare as a column is sorted; None if files cannot be cut at them."""
    if isinstance(column.dtype, pl.Enum):
        return column.to_physical()
    if column.dtype == pl.Categorical:
        return column.cast(pl.String)
    kind = column.dtype
    if kind.is_numeric() or kind.is_temporal() or kind in (pl.String, pl.Boolean):
        return column
    return None


# -- store ------------------------------------------------------------------------------------


def pack_slices(parts: Sequence[tuple[str, pl.DataFrame]], key: str | None = None) -> bytes:
    """Return the bytes of an object with the rows of some folders; equal rows give equal bytes.

    Args:
        parts: Folder and rows; sorted, if there is a sort column.
        key: The first column that rows are sorted by.
    """
    sink, index = io.BytesIO(), []
    for folder, frame in parts:
        for piece in _pieces(frame):
            data = io.BytesIO()
            piece.write_ipc_stream(data, compression="zstd", compat_level=OLDEST)
            view = data.getbuffer()
            index.append(
                {
                    "folder": folder,
                    "rows": piece.height,
                    "offset": sink.tell(),
                    "length": len(view),
                    "sha256": hashlib.sha256(view).hexdigest(),
                }
            )
            sink.write(view)
    table = pl.DataFrame(index, schema=INDEX)
    packed = io.BytesIO()
    _with_samples(table, parts, key).write_ipc_stream(packed, compression="zstd")
    body = packed.getvalue()
    for part in (body, hashlib.sha256(body).digest(), len(body).to_bytes(8, "little"), MAGIC):
        sink.write(part)
    return sink.getvalue()


_INDEX: dict[str, Any] = {
    "folder": pl.String,
    "rows": pl.Int64,
    "offset": pl.Int64,
    "length": pl.Int64,
    "sha256": pl.String,
}
INDEX: Final = pl.Schema(_INDEX)
"""Columns of an index. With a sort column also `samples`, a list of sort keys, and `high`, the
last."""


def _pieces(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    size = bytes_of(frame)
    rows = max(1, int(frame.height * SLICE_BYTES / size)) if size > SLICE_BYTES else frame.height
    yield from frame.iter_slices(max(1, rows))


def _with_samples(
    table: pl.DataFrame, parts: Sequence[tuple[str, pl.DataFrame]], key: str | None
) -> pl.DataFrame:
    columns = [frame.get_column(key) for _, frame in parts if key in frame.columns] if key else []
    keys = [sort_key(column) for column in columns]
    if not table.height or len(keys) != len(parts) or any(found is None for found in keys):
        return table  # A partition column is the same in all rows of a file.
    whole = pl.concat([found for found in keys if found is not None], rechunk=True)
    samples, high, start = [], [], 0
    for rows in table["rows"]:
        count = min(rows, SAMPLES)
        samples.append(whole.gather([start + rows * at // count for at in range(count)]))
        high.append(start + rows - 1)
        start += rows
    return table.with_columns(
        pl.Series("samples", samples, dtype=pl.List(whole.dtype)),
        whole.gather(high).alias("high"),
    )


# -- read -------------------------------------------------------------------------------------


def read_index(size: int, read: Ranges) -> pl.DataFrame:
    """Read the index of an object (see INDEX).

    Args:
        size: Bytes of the object.
        read: Reads ranges of it.

    Raises:
        ValueError, polars.exceptions.PolarsError: it is damaged, or another object.
    """
    start = max(0, size - TAIL_BYTES)
    [tail] = read([(start, size)])
    tail = bytes(tail)
    if size < _ENDS or not tail.endswith(MAGIC):
        raise ValueError("it is not a partial result in slices")
    length = int.from_bytes(tail[-16:-8], "little")
    if length > min(size - _ENDS, MAX_INDEX):
        raise ValueError(f"it has an index of {length:,} bytes in {size:,}")
    first = size - _ENDS - length
    if first < start:
        tail = bytes(read([(first, start)])[0]) + tail
        start = first
    body, digest = tail[first - start : -_ENDS], tail[-_ENDS:-16]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its index does not have its checksum")
    index = pl.read_ipc_stream(io.BytesIO(body))
    ends = pl.col("offset") + pl.col("length")
    sane = (pl.col("rows") > 0) & (pl.col("offset") >= 0) & (pl.col("length") > 0) & (ends <= first)
    if dict(index.select(list(INDEX)).schema) != dict(INDEX) or not index.select(sane.all()).item():
        raise ValueError("its index is not one")
    return index


def read_slice(data: bytes | memoryview, sha256: str) -> pl.DataFrame:
    """Decode a slice.

    Raises:
        ValueError, polars.exceptions.PolarsError: it is damaged.
    """
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("a slice does not have its checksum")
    return pl.read_ipc_stream(io.BytesIO(data))
