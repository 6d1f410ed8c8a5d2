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
        "into.uri": "postgresql://loader@db.example.com/shop",
        "into.table": "finance.revenue",
        "into.mode": "replace",
        "into.key": "[order_id, line]",
        "into.schema": "widen",
        "into.password_env": "WAREHOUSE_PASSWORD",
        "into.password_block": "warehouse",
    },
    base=("name", "input.uri", "into.uri", "into.table"),
    needs={"into.key": {"into.mode": "merge"}},
)
