"""An example per key of the file of an ingest, for the reference page and the JSON Schema."""

from __future__ import annotations

from typing import Any

from pipeline.config.file_examples import FileExamples
from pipeline.config.ingest import Files, Http, Ingest, IngestOutput
from pipeline.config.ingest_rows import DatabaseUrl, Incremental
from pipeline.config.job_schema import schema_of

TITLE = "chunkmap ingest"
_URL = {"http.url": "https://shop.example/api/orders"}
_FILES = {"files.uri": "s3://shop/exports/2024-*.csv.gz"}
_SQL = {"sql.url.env": "SHOP_DATABASE", "sql.table": "orders"}
_INCREMENTAL = {"sql.incremental.column": "updated_at", "output.mode": "append"}
_AUTH = {"http.auth.env": "SHOP_TOKEN"}
_CURSOR = {"http.pages.by": "cursor", "http.pages.path": "meta.next"}
_NUMBERED = {"http.pages.by": "page"}
_SIZED = {"http.pages.size": "100", "http.pages.size_parameter": "per_page"}
_PAGES: dict[str, dict[str, str]] = {
    "by": {},
    "parameter": _CURSOR,
    "path": _CURSOR,
    "optional": _CURSOR,
    "first": _NUMBERED,
    "size_parameter": _NUMBERED | _SIZED,
    "size": _NUMBERED | _SIZED,
    "total": _NUMBERED | _SIZED,
    "last": _NUMBERED,
}
"""Other keys that a key of `http.pages` needs."""
_WINDOW_KEYS = ("from", "to", "parameters", "format", "step", "includes_end")
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
        "http.auth.parameter": "api_key",
        "http.auth.env": "SHOP_TOKEN",
        "http.auth.secret": "shop-token",
        "http.records": "data.items",
        "http.pages.by": "page",
        "http.pages.parameter": "after",
        "http.pages.path": "meta.next",
        "http.pages.optional": "true",
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
        "http.page_timeout": "2min",
        "http.retries": "8",
        "http.max_wait": "15min",
        "files.uri": "s3://shop/exports/2024-*.csv.gz",
        "files.format": "ndjson",
        "files.records": "data.items",
        "files.sheet": "Orders",
        "files.separator": '";"',
        "files.nulls": '["", "NA"]',
        "files.max_bytes": "256MiB",
        "files.range_bytes": "16MiB",
        "sql.url.value": "sqlite:shop.db",
        "sql.url.env": "SHOP_DATABASE",
        "sql.url.secret": "shop-database",
        "sql.table": "public.orders",
        "sql.query": "SELECT id, total::numeric(18, 2) FROM orders",
        "sql.split_by": "id",
        "sql.connections": "8",
        "sql.incremental.column": "updated_at",
        "sql.incremental.lag": "5m",
        "source.function": "shop.orders:read",
        "source.params": "{since: 2024-03-01}",
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
    base=("name", "output.uri"),
    needs={
        **{name: _URL for name in ("name", "schema", "types")},
        **{f"output.{name}": _URL for name in IngestOutput.model_fields},
        **{f"http.{name}": _URL for name in Http.model_fields},
        **{f"http.auth.{name}": _URL | _AUTH for name in ("header", "value", "parameter")},
        **{f"http.auth.{name}": _URL for name in ("env", "secret")},
        **{f"http.pages.{name}": _URL | needs for name, needs in _PAGES.items()},
        **{f"files.{name}": _FILES for name in Files.model_fields},
        **{f"sql.url.{name}": {"sql.table": "orders"} for name in DatabaseUrl.model_fields},
        "sql.table": {"sql.url.env": "SHOP_DATABASE"},
        "sql.query": {"sql.url.env": "SHOP_DATABASE"},
        **{f"sql.{name}": _SQL for name in ("split_by", "connections")},
        **{f"sql.incremental.{name}": _SQL | _INCREMENTAL for name in Incremental.model_fields},
        "source.params": {"source.function": "shop.orders:read"},
        **{f"window.{name}": _URL | _WINDOW for name in _WINDOW_KEYS},
    },
    whole="http.url",
)


def ingest_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file."""
    return schema_of(Ingest, TITLE, INGEST_EXAMPLES.texts)
