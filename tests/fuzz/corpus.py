"""Small Parquet files of many kinds, each made anew: what changes and comparisons start from."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

ROWS: Final = 12
Make = Callable[[int], Any]
_START: Final = datetime(2024, 2, 28, 23)


def _array(kind: pa.DataType, make: Make, nulls: int) -> pa.Array:
    return pa.array(
        [None if nulls and i % nulls == 0 else make(i) for i in range(1, ROWS + 1)], kind
    )


TYPES: Final[dict[str, tuple[pa.DataType, Make]]] = {
    "bool": (pa.bool_(), lambda i: i % 3 == 0),
    "int8": (pa.int8(), lambda i: i - 5),
    "uint8": (pa.uint8(), lambda i: 250 + i % 5),
    "int16": (pa.int16(), lambda i: -i * 100),
    "uint16": (pa.uint16(), lambda i: 65_500 + i),
    "int32": (pa.int32(), lambda i: i % 4 - 2),
    "uint32": (pa.uint32(), lambda i: 2**32 - i),
    "int64": (pa.int64(), lambda i: 2**40 * i),
    "uint64": (pa.uint64(), lambda i: 2**64 - i),
    "float16": (pa.float16(), lambda i: np.float16(i / 4)),
    "float32": (pa.float32(), lambda i: float("nan") if i == 3 else i / 4),
    "float64": (pa.float64(), lambda i: float("-inf") if i == 3 else i / 7),
    "string": (pa.string(), lambda i: f"värde {i % 5}" * (i % 3)),
    "large_string": (pa.large_string(), lambda i: "x" * i),
    "string_view": (pa.string_view(), lambda i: f"a text that is longer than twelve {i}"),
    "binary": (pa.binary(), lambda i: bytes([250 + i % 6] * (i % 4))),
    "fixed": (pa.binary(5), lambda i: bytes([i]) * 5),
    "date": (pa.date32(), lambda i: date(1969, 12, 28) + timedelta(i)),
    "time_ms": (pa.time32("ms"), lambda i: time(i, 2, 3)),
    "time_us": (pa.time64("us"), lambda i: time(i, 2, 3, 4)),
    "time_ns": (pa.time64("ns"), lambda i: time(i, 2, 3, 4)),
    "ms": (pa.timestamp("ms"), lambda i: _START + timedelta(hours=i)),
    "us": (pa.timestamp("us"), lambda i: _START + timedelta(microseconds=i)),
    "ns": (pa.timestamp("ns"), lambda i: _START + timedelta(days=i)),
    "utc": (pa.timestamp("us", "UTC"), lambda i: (_START + timedelta(i)).replace(tzinfo=UTC)),
    "zone": (
        pa.timestamp("ms", "Europe/Paris"),
        lambda i: (_START + timedelta(i)).replace(tzinfo=UTC),
    ),
    "duration": (pa.duration("us"), lambda i: timedelta(seconds=i)),
    "money": (pa.decimal128(9, 2), lambda i: Decimal(i - 6) / 4),
    "money18": (pa.decimal128(18, 4), lambda i: Decimal(i - 6) / 4),
    "money38": (pa.decimal128(38, 2), lambda i: Decimal(f"{'9' * 35}.{i:02}")),
    "null": (pa.null(), lambda i: None),
    "category": (pa.dictionary(pa.int32(), pa.string()), lambda i: f"c{i % 3}"),
    "list": (pa.list_(pa.int32()), lambda i: [None, i, i][: i % 4]),
    "list_text": (pa.list_(pa.string()), lambda i: [str(i)] * (i % 3)),
    "lists": (pa.list_(pa.list_(pa.int64())), lambda i: [[i], [], [i, None]][: i % 4]),
    "array": (pa.list_(pa.int16(), 3), lambda i: [i, i, i]),
    "struct": (
        pa.struct([("a", pa.int64()), ("b.c", pa.list_(pa.string()))]),
        lambda i: {"a": i, "b.c": [str(i)] * (i % 2)},
    ),
    "structs": (
        pa.list_(pa.struct([("x", pa.float64()), ("y", pa.struct([("z", pa.date32())]))])),
        lambda i: [{"x": i / 2, "y": {"z": date(2024, 1, i)}}] * (i % 3),
    ),
    "map": (pa.map_(pa.string(), pa.int32()), lambda i: [(f"k{j}", j) for j in range(i % 3)]),
}
"""Arrow types, and a value for each row."""


def column(name: str, nulls: int) -> pa.Array:
    """Return a column of a type; every n-th value is null, with 0 none."""
    kind, make = TYPES[name]
    if pa.types.is_dictionary(kind):
        return _array(kind.value_type, make, nulls).dictionary_encode()
    return _array(kind, make, nulls)


def by_pyarrow(table: pa.Table, **options: Any) -> bytes:
    """Return a table as a file by pyarrow."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def by_polars(frame: pl.DataFrame, **options: Any) -> bytes:
    """Return a frame as a file by Polars."""
    sink = io.BytesIO()
    frame.write_parquet(sink, **options)
    return sink.getvalue()


def polars_frame() -> pl.DataFrame:
    """Return a frame with what Polars alone has."""
    rows = range(ROWS)
    return pl.DataFrame(
        {
            "id": pl.Series(rows, dtype=pl.Int64),
            "wide": pl.Series([(-1) ** i * 2 ** (9 * i) for i in rows], dtype=pl.Int128),
            "enum": pl.Series(["z", None, "a"] * 4, dtype=pl.Enum(["z", "a"])),
            "category": pl.Series(["b", "a", None] * 4, dtype=pl.Categorical),
            "day": pl.Series([date(2024, 1, 1 + i) for i in rows]),
            "time": pl.Series([time(i, 1, 2) for i in rows]),
            "half": pl.Series([i / 4 for i in rows], dtype=pl.Float16),
            "zone": pl.Series([_START] * ROWS).dt.replace_time_zone("Asia/Kolkata"),
            "money": pl.Series([Decimal(i) for i in rows], dtype=pl.Decimal(38, 2)),
            "lists": pl.Series([[i, None] * (i % 3) for i in rows], dtype=pl.List(pl.Int8)),
            "array": pl.Series([[i, i] for i in rows], dtype=pl.Array(pl.Float32, 2)),
            "struct": pl.Series([{"a": i, "b": [str(i)]} for i in rows]),
            "nothing": pl.Series([None] * ROWS, dtype=pl.Null),
        }
    )


def _in_groups(table: pa.Table, groups: list[int], **options: Any) -> bytes:
    sink = io.BytesIO()
    start = 0
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        for rows in groups:
            writer.write_table(table.slice(start, rows))
            start += rows
    return sink.getvalue()


def _mixed(*names: str, nulls: int = 4) -> pa.Table:
    return pa.table({name: column(name, nulls) for name in names})


SOME: Final = ("int32", "string", "float64")
_GROUPS: Final = (
    ("bool", "int8", "uint8", "int16"), ("uint16", "uint32", "uint64"), ("float16", "float32"),
    ("string", "large_string", "string_view"), ("binary", "fixed"), ("date", "time_ms", "time_us"),
    ("ms", "us", "ns"), ("utc", "zone", "duration"), ("money", "money18", "money38"),
    ("null", "category"), ("list", "list_text"), ("lists", "array"), ("struct",), ("structs",),
    ("map",),
)  # fmt: skip


@cache
def footers() -> dict[str, bytes]:
    """Return 50 files by name; the same each time."""
    some = _mixed(*SOME)
    found = {f"types {'+'.join(names)}": by_pyarrow(_mixed(*names)) for names in _GROUPS}
    found |= {
        f"codec {codec}": by_pyarrow(some, compression=codec)
        for codec in ("none", "snappy", "gzip", "brotli", "lz4", "zstd")
    }
    found |= {
        f"encoding {encoding}{', fixed' * (name == 'fixed')}": by_pyarrow(
            _mixed(name), use_dictionary=False, column_encoding={name: encoding}
        )
        for encoding, name in (
            ("PLAIN", "int64"), ("DELTA_BINARY_PACKED", "int64"), ("BYTE_STREAM_SPLIT", "float64"),
            ("DELTA_LENGTH_BYTE_ARRAY", "string"), ("DELTA_BYTE_ARRAY", "string"),
            ("RLE", "bool"), ("BYTE_STREAM_SPLIT", "fixed"),
        )
    }  # fmt: skip
    found |= {
        "required": by_pyarrow(
            _mixed(*SOME, nulls=0).cast(
                pa.schema([pa.field(n, TYPES[n][0], nullable=False) for n in SOME])
            )
        ),
        "without statistics": by_pyarrow(some, write_statistics=False),
        "page index": by_pyarrow(some, write_page_index=True, data_page_size=8),
        "page index, nested": by_pyarrow(_mixed("list", "map"), write_page_index=True),
        "pages 2": by_pyarrow(some, data_page_version="2.0", data_page_size=8),
        "pages 2, nested": by_pyarrow(_mixed("lists", "struct"), data_page_version="2.0"),
        "format 1.0": by_pyarrow(some, version="1.0"),
        "int96": by_pyarrow(
            _mixed("us", "int32"), use_deprecated_int96_timestamps=True, store_schema=False
        ),
        "decimals as integers": by_pyarrow(
            _mixed("money", "money18"), store_decimal_as_integer=True
        ),
        "without Arrow schema": by_pyarrow(_mixed("list", "utc", "us"), store_schema=False),
        "key-value metadata": by_pyarrow(some.replace_schema_metadata({"a": "b", "c": "" * 300})),
        "sorted": by_pyarrow(some, sorting_columns=[pq.SortingColumn(0, descending=True)]),
        "checksums": by_pyarrow(some, write_page_checksum=True),
        "Bloom filters": by_pyarrow(some, bloom_filter_options={"string": True}),
        "several row groups": by_pyarrow(some, row_group_size=5),
        "many row groups": by_pyarrow(_mixed("int64"), row_group_size=1),
        "empty row groups": _in_groups(some, [0, 5, 0, 7, 0]),
        "no rows": by_pyarrow(some.slice(0, 0)),
        "two columns of bytes": by_pyarrow(_mixed("binary", "money38"), row_group_size=4),
        "Polars": by_polars(polars_frame()),
        "Polars, several row groups": by_polars(polars_frame(), row_group_size=5),
        "Polars, all statistics": by_polars(polars_frame(), statistics="full"),
    }
    return found


# -- For comparisons ---------------------------------------------------------------------------

_ENCODINGS: Final = {
    "DELTA_BINARY_PACKED": ("int32", "int64", "uint8", "date", "ms"),
    "BYTE_STREAM_SPLIT": ("float16", "float32", "float64", "int32", "int64", "fixed", "money38"),
    "DELTA_LENGTH_BYTE_ARRAY": ("string", "large_string", "binary"),
    "DELTA_BYTE_ARRAY": ("string", "binary", "fixed", "money38"),
    "RLE": ("bool",),
    "PLAIN": tuple(TYPES),
}
_CODECS: Final = ("none", "snappy", "gzip", "brotli", "lz4", "zstd")


def combinations() -> Iterator[tuple[str, bytes]]:
    """Yield files of every type with every encoding, codec, page version and nullability."""
    number = 0
    for version in ("1.0", "2.0"):
        for nulls in (0, 3, 1):
            for name in TYPES:
                for encoding in ("dictionary", *_ENCODINGS):
                    if encoding != "dictionary" and name not in _ENCODINGS[encoding]:
                        continue
                    number += 1
                    codec = _CODECS[number % len(_CODECS)]
                    what = f"{name}, {encoding}, {codec}, pages {version}, nulls {nulls}"
                    yield what, _combination(name, encoding, codec, version, nulls)
    for codec in ("uncompressed", "snappy", "gzip", "brotli", "lz4", "zstd"):
        what = f"Polars, {codec}"
        yield what, by_polars(polars_frame(), compression=codec, row_group_size=5)


def _combination(name: str, encoding: str, codec: str, version: str, nulls: int) -> bytes:
    values = column(name, nulls)
    required = not nulls and not pa.types.is_null(values.type)
    field = pa.field(name, values.type, nullable=not required)
    table = pa.table([values], schema=pa.schema([field]))
    options: dict[str, Any] = {"use_dictionary": encoding == "dictionary"}
    if encoding != "dictionary" and not pa.types.is_nested(values.type):
        options["column_encoding"] = {name: encoding}
    return by_pyarrow(
        table,
        compression=codec,
        data_page_version=version,
        data_page_size=16,
        row_group_size=7,
        **options,
    )
