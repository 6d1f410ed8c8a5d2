"""An example per key of the load file, for the reference page.

Each is the YAML text of a value that the key accepts; tests check that.
"""

from __future__ import annotations

from typing import Any

from pipeline.config.file_examples import FileExamples
from pipeline.config.job_schema import schema_of
from pipeline.config.load_file import LoadFile

TITLE = "chunkmap load"
_REQUESTS = {
    "format": "array",
    "rows": "500",
    "max_bytes": "4MiB",
    "headers": "{Accept: application/json}",
    "auth.header": "X-Api-Key",
    "auth.value": '"{secret}"',
    "auth.env": "REVENUE_TOKEN",
    "auth.secret": "revenue-token",
    "requests_per_second": "20",
    "timeout": "10s",
    "retries": "8",
    "max_wait": "15min",
}
_ENDPOINT = {"into.uri": "https://api.example.com/revenue"}
_AUTH = {"into.http.auth.env": "REVENUE_TOKEN"}

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
        **{f"into.http.{name}": text for name, text in _REQUESTS.items()},
    },
    base=("name", "input.uri", "into.uri", "into.table"),
    needs={
        "into.key": {"into.mode": "merge"},
        **{f"into.http.{name}": _ENDPOINT for name in _REQUESTS},
        **{f"into.http.auth.{name}": _ENDPOINT | _AUTH for name in ("header", "value")},
    },
    instead={f"into.http.{name}": ("into.table",) for name in _REQUESTS},
)


def load_schema() -> dict[str, Any]:
    """Return the JSON Schema of the load file."""
    return schema_of(LoadFile, TITLE, LOAD_EXAMPLES.texts)
