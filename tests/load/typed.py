"""A column of each type that databases have in common."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import polars as pl

TYPES = pl.DataFrame(
    {
        "flag": pl.Series([True, None]),
        "i8": pl.Series([-128, None], dtype=pl.Int8),
        "u8": pl.Series([255, None], dtype=pl.UInt8),
        "u16": pl.Series([65535, None], dtype=pl.UInt16),
        "u32": pl.Series([2**32 - 1, None], dtype=pl.UInt32),
        "u64": pl.Series([2**64 - 1, None], dtype=pl.UInt64),
        "i64": pl.Series([-(2**63), 2**63 - 1], dtype=pl.Int64),
        "f32": pl.Series([1.5, None], dtype=pl.Float32),
        "f64": pl.Series([float("inf"), None], dtype=pl.Float64),
        "price": pl.Series([Decimal("-12345678901234567.89"), None], dtype=pl.Decimal(38, 2)),
        "text": pl.Series(["ä'\"\\\n", None]),
        "kind": pl.Series(["a", None], dtype=pl.Categorical()),
        "level": pl.Series(["low", None], dtype=pl.Enum(["low", "high"])),
        "raw": pl.Series([b"\x00\xff", None]),
        "day": pl.Series([date(2024, 2, 29), None]),
        "hour": pl.Series([time(23, 59, 59, 999999), None]),
        "at_ms": pl.Series([datetime(2024, 2, 29, 1), None], dtype=pl.Datetime("ms")),
        "at_us": pl.Series([datetime(1, 1, 1), None], dtype=pl.Datetime("us")),
        "at_zone": pl.Series([datetime(2024, 7, 1, tzinfo=UTC), None]).dt.convert_time_zone(
            "Europe/Berlin"
        ),
        "took": pl.Series([timedelta(days=2, microseconds=3), None]),
        "list": pl.Series([[1, None], None], dtype=pl.List(pl.Int32)),
        "struct": pl.Series([{"a": 1, "b c": ["x"]}, None]),
    }
)
