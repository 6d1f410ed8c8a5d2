"""An example per key of the load file, for the reference page.

Each is the YAML text of a value that the key accepts; tests check that.
"""

from __future__ import annotations

from pipeline.config.file_examples import FileExamples

LOAD_EXAMPLES = FileExamples(
    {
        "name": "daily-revenue",
        "input.uri": "s3://shop/revenue/",
        "input.version": "12",
        "into.uri": "warehouse.duckdb",
        "into.table": "finance.revenue",
        "into.mode": "replace",
        "into.key": "[order_id, line]",
        "into.schema": "widen",
    },
    base=("name", "input.uri", "into.uri", "into.table"),
    needs={"into.key": {"into.mode": "merge"}},
    whole="into.table",
)
