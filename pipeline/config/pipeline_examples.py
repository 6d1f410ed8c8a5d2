"""An example per key of the pipeline file, for the reference page and the JSON Schema."""

from __future__ import annotations

from typing import Any

from pipeline.config.file_examples import FileExamples
from pipeline.config.job_schema import schema_of
from pipeline.config.pipeline_file import PipelineFile

TITLE = "chunkmap pipeline"

PIPELINE_EXAMPLES = FileExamples(
    {
        "name": "daily",
        "state": "s3://shop/pipelines/daily/",
        "parameters": "{date: {type: date, default: yesterday}, country: string}",
        "pipeline": "[{ingest: orders.yaml}, {map: revenue.yaml, when: rows > 0}]",
    },
    base=("name", "state", "pipeline"),
)
STAGE_EXAMPLES = FileExamples(
    {
        "name": "orders",
        "ingest": "orders.yaml",
        "map": "revenue.yaml",
        "load": "warehouse.yaml",
        "call": "reports.mail:send",
        "params": '{to: sales@shop.example, day: "{{ date }}"}',
        "set": '{window.from: "{{ date }}", window.to: "{{ date + 1d }}"}',
        "refresh": "true",
        "needs": "[orders]",
        "when": "rows > 0 and weekday(date) == 0",
        "if_skipped": "run",
    },
    base=(),
    needs={
        "name": {"ingest": "orders.yaml"},
        "params": {"call": "reports.mail:send"},
        "set": {"ingest": "orders.yaml"},
        "refresh": {"ingest": "orders.yaml"},
        "needs": {"map": "revenue.yaml"},
        "when": {"map": "revenue.yaml"},
        "if_skipped": {"call": "reports.mail:send"},
    },
)
PARAMETER_EXAMPLES = FileExamples(
    {"type": "date", "default": "yesterday"}, base=(), needs={"default": {"type": "date"}}
)


def pipeline_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file."""
    stages = {f"pipeline.{key}": text for key, text in STAGE_EXAMPLES.texts.items()}
    parameters = {f"parameters.{key}": text for key, text in PARAMETER_EXAMPLES.texts.items()}
    return schema_of(PipelineFile, TITLE, {**PIPELINE_EXAMPLES.texts, **stages, **parameters})
