"""An example per key of the job file, for the reference pages and the JSON Schema.

Each is the YAML text of a value that the key accepts; tests check that.
"""

from __future__ import annotations

from pipeline.config.file_examples import FileExamples

EXAMPLES = {
    "name": "daily-revenue",
    "input.uri": "s3://shop/sales/",
    "input.table": "s3://shop/sales_delta/",
    "input.version": "12",
    "input.columns": "[id, price, day]",
    "input.filter": '[[day, ">=", 2024-01-01], [country, in, [DE, FR]]]',
    "input.include": '["*.parquet", "*.snappy"]',
    "input.exclude": '["tmp/*", "*_old.parquet"]',
    "input.hive_types": "{zip: string, day: date}",
    "input.schema": "union",
    "input.types": '{id: int64, at: "datetime[us, UTC]", price: "decimal[18, 2]"}',
    "input.object_column": "source",
    "input.int96": "ns",
    "input.on_bad_object": "quarantine",
    "input.max_quarantined": "1%",
    "input.verify_checksums": "true",
    "input.changed_only": "true",
    "chunks.target": "64MiB",
    "chunks.max_rows": "1000000",
    "chunks.per_file": "true",
    "chunks.per_partition": "true",
    "chunks.cross_partitions": "true",
    "transform": "shop.revenue:revenue",
    "params": "{currency: EUR, since: 2024-01-01, rates: [1.1], token: {from_env: SHOP_TOKEN}}",
    "tables": "[s3://shop/countries.parquet]",
    "output.uri": "s3://shop/revenue/",
    "output.mode": "append",
    "output.schema": "widen",
    "output.compression": "zstd:3",
    "output.encoding": "plain",
    "output.row_group_rows": "500000",
    "output.row_group_bytes": "64MiB",
    "output.partition_by": "[country, day]",
    "output.file_bytes": "256MiB",
    "output.max_partitions": "20000",
    "output.sort_by": "[day, id]",
    "output.dictionary": "[country]",
    "output.page_index": "true",
    "output.keep": "all",
    "output.rename": "{amount: price}",
    "output.max_garbage": "50%",
    "output.keep_versions": "3",
    "output.table.format": "delta",
    "outputs": "{sales: {uri: s3://shop/sold/}, refunds: {uri: s3://shop/refunds/}}",
    "retries": "5",
    "rounds": "2",
    "max_failures": "5%",
    "chunk_timeout": "10min",
    "concurrency": "1",
    "resources": "{GPU: 1}",
    "reduce.combine": "shop.revenue:add",
    "reduce.finalize": "shop.revenue:round_totals",
    "then.function": "shop.forecast:forecast",
    "then.by": "[country, product]",
    "then.params": "{days: 28}",
    "then.max_groups": "50",
    "checks.rows.schema": "shop.schemas:Sales",
    "checks.rows.severity": "quarantine",
    "checks.rows.max_quarantined": "1%",
    "checks.run": "[{check: unique, columns: [order_id, line]}, {check: row_count, min: 1}]",
    "window.column": "day",
    "window.columns": "[year, month, day]",
    "window.grain": "month",
    "window.timezone": "Europe/Berlin",
}
"""Text of an example value, by dotted key."""

_THEN = {
    "reduce.combine": "shop.revenue:add",
    "then.function": "shop.forecast:forecast",
    "then.by": "[country, product]",
}
_NEEDS: dict[str, dict[str, str]] = {
    "input.version": {"input.table": "s3://shop/sales_delta/"},
    "input.max_quarantined": {"input.on_bad_object": "quarantine"},
    "output.rename": {"output.keep": "all"},
    "output.max_garbage": {"output.keep": "all"},
    "reduce.finalize": {"reduce.combine": "shop.revenue:add"},
    **{f"then.{name}": _THEN for name in ("function", "by", "params", "max_groups")},
    "checks.rows.severity": {"checks.rows.schema": "shop.schemas:Sales"},
    "checks.rows.max_quarantined": {
        "checks.rows.schema": "shop.schemas:Sales",
        "checks.rows.severity": "quarantine",
    },
    "window.grain": {"window.column": "day"},
    "window.timezone": {"window.column": "day"},
}
"""Other keys that a key needs, with their values."""


JOB_EXAMPLES = FileExamples(
    EXAMPLES,
    base=("name", "input.uri", "transform", "output.uri"),
    needs=_NEEDS,
    instead={
        "input.table": ("input.uri",),
        "input.version": ("input.uri",),
        "outputs": ("output.uri",),
    },
    whole="transform",
)
