"""An example per key of the file of an ingest, for the reference page and the JSON Schema."""

from __future__ import annotations

from typing import Any

from pipeline.config.file_examples import FileExamples
from pipeline.config.ingest import Ingest
from pipeline.config.job_schema import schema_of

TITLE = "chunkmap ingest"
_AUTH = {"http.auth.env": "SHOP_TOKEN"}
_CURSOR = {"http.pages.by": "cursor", "http.pages.path": "meta.next"}
_NUMBERED = {"http.pages.by": "page"}
_SIZED = {"http.pages.size": "100", "http.pages.size_parameter": "per_page"}
_WINDOW = {
    "window.from": "2024-03-01",
    "window.to": "2024-04-01",
    "window.parameters": "[created_from, created_to]",
}

INGEST_EXAMPLES = FileExamples(
    {
        "name": "orders",
        "http.url": "https://shop.example/api/orders",
        "http.params": "{status: paid, expand: true}",
        "http.headers": "{Accept: application/json}",
        "http.auth.header": "X-Api-Key",
        "http.auth.value": '"{secret}"',
        "http.auth.env": "SHOP_TOKEN",
        "http.auth.secret": "shop-token",
        "http.records": "data.items",
        "http.pages.by": "page",
        "http.pages.parameter": "after",
        "http.pages.path": "meta.next",
        "http.pages.first": "0",
        "http.pages.size_parameter": "per_page",
        "http.pages.size": "100",
        "http.pages.total": "meta.total",
        "http.pages.last": "meta.pages",
        "http.max_pages": "500",
        "http.max_page_bytes": "16MiB",
        "http.concurrency": "4",
        "http.requests_per_second": "2.5",
        "http.timeout": "10s",
        "http.retries": "8",
        "http.max_wait": "15min",
        "window.from": "2024-03-01",
        "window.to": "2024-04-01",
        "window.parameters": "[created_from, created_to]",
        "window.format": '"%Y-%m-%dT%H:%M:%SZ"',
        "window.step": "1d",
        "window.includes_end": "true",
        "schema": "widen",
        "types": '{created_at: "datetime[us, UTC]", total: "decimal[18, 2]", day: date}',
        "output.uri": "s3://shop/orders/",
        "output.mode": "append",
        "output.file_bytes": "64MiB",
        "output.partition_by": "[day]",
        "output.max_partitions": "400",
        "output.compression": "zstd:3",
        "output.keep_versions": "3",
    },
    base=("name", "http.url", "output.uri"),
    needs={
        "http.auth.header": _AUTH,
        "http.auth.value": _AUTH,
        "http.pages.parameter": _CURSOR,
        "http.pages.path": _CURSOR,
        "http.pages.first": _NUMBERED,
        "http.pages.size_parameter": {**_NUMBERED, **_SIZED},
        "http.pages.size": {**_NUMBERED, **_SIZED},
        "http.pages.total": {**_NUMBERED, **_SIZED},
        "http.pages.last": _NUMBERED,
        **{f"window.{name}": _WINDOW for name in ("format", "step", "includes_end")},
        **{f"window.{name}": _WINDOW for name in ("from", "to", "parameters")},
    },
    whole="http.url",
)


def ingest_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file."""
    return schema_of(Ingest, TITLE, INGEST_EXAMPLES.texts)
