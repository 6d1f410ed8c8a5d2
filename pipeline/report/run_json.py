"""Render a run as one JSON object for programs, described by SCHEMA.

Times are seconds. Moments are Unix seconds; in `timeline`, `throughput` and `workers` they are
seconds since `clock.origin` with pauses cut out. All completions are listed up to MAX_CHUNKS; of
more, every n-th by index and the slowest are listed, and `chunks.complete` is false.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

import polars as pl

from pipeline.printable import escaped_json
from pipeline.report import run_figures, run_timeline
from pipeline.report.advice import advice
from pipeline.report.run_model import COMPLETION_SCHEMA, MappedGroups, Pruned, RunReport

VERSION = 1
MAX_CHUNKS = 20_000
MAX_SLOWEST = 100
MAX_FILES = 100
MAX_GROUPS = 200
MAX_MESSAGE = 8_000

_NUMBER: dict[str, Any] = {"type": "number"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_TEXT: dict[str, Any] = {"type": "string"}
_MAYBE_NUMBER: dict[str, Any] = {"type": ["number", "null"]}
_MAYBE_TEXT: dict[str, Any] = {"type": ["string", "null"]}


def _object(properties: dict[str, Any], description: str = "") -> dict[str, Any]:
    described = {"description": description} if description else {}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **described,
    }


def _list(items: dict[str, Any], description: str = "") -> dict[str, Any]:
    return {"type": "array", "items": items, "description": description}


_REQUESTS = _object(
    dict.fromkeys(("reads", "writes", "retries", "throttled", "request_limit"), _COUNT)
)
_FILE = _object({"uri": _TEXT, "bytes": _COUNT, "rows": {"type": ["integer", "null"]}})
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_SHARE = _object({"name": _TEXT, "seconds": _NUMBER, "share": _NUMBER})

_FAILURES = _list(
    _object(
        {
            "error": _TEXT,
            "attempts": _COUNT,
            "chunks": _COUNT,
            "chunks_final": _COUNT,
            "transient": {"type": "boolean"},
            "first_at": _NUMBER,
            "last_at": _NUMBER,
            "chunk": _TEXT,
            "index": _COUNT,
            "worker": _TEXT,
            "message": _TEXT,
            "trace": _TEXT,
            "where": _TEXT,
            "line": _TEXT,
        }
    ),
    f"By kind, with an example each; at most {MAX_GROUPS}.",
)

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "chunkmap run report",
    **_object(
        {
            "schema": {"const": "chunkmap.run-report"},
            "version": {"const": VERSION},
            "run": _object(
                {
                    **dict.fromkeys(
                        ("id", "job", "input", "output", "mode", "transform", "fingerprint"), _TEXT
                    ),
                    "state": {"enum": ["done", "failed", "running", "interrupted"]},
                    "chunks_planned": _COUNT,
                    "rows_planned": _COUNT,
                    "created": _NUMBER,
                    "started": _MAYBE_NUMBER,
                    "finished": _MAYBE_NUMBER,
                    "rounds": _COUNT,
                    "threads_per_worker": {"type": ["integer", "null"]},
                    "environment": {"type": "object", "additionalProperties": _TEXT},
                    "tables": {"type": "object", "additionalProperties": _TEXT},
                    "prefect_url": _MAYBE_TEXT,
                    "resume_command": _MAYBE_TEXT,
                    "chunks_published": _COUNT,
                    "rows_done": {"type": ["integer", "null"]},
                    "params": _TEXTS,
                    "filter": _TEXT,
                    "columns": _list(_TEXT),
                    "schema": _TEXTS,
                    "layout": _TEXT,
                    "encodings": {"type": "string"},
                    "kept": {"type": "string"},
                    "commit": _TEXT,
                    "memory_limit": {"type": ["integer", "null"]},
                }
            ),
            "clock": _object(
                {
                    "origin": _NUMBER,
                    "finish": _NUMBER,
                    "pauses": _list(
                        _object({"start": _NUMBER, "stop": _NUMBER}),
                        "Unix seconds between which nothing ran.",
                    ),
                }
            ),
            "totals": _object(
                {
                    **dict.fromkeys(
                        (
                            "chunks_planned",
                            "chunks_done",
                            "chunks_failed",
                            "chunks_left",
                            "rows_in",
                            "rows_out",
                            "bytes_in",
                            "bytes_out",
                            "workers",
                            "attempts_redone",
                            "attempts_failed",
                            "rows_filtered",
                            "memory",
                        ),
                        _COUNT,
                    ),
                    "requests": _REQUESTS,
                    **dict.fromkeys(
                        (
                            "seconds_redone",
                            "wall_seconds",
                            "paused_seconds",
                            "active_seconds",
                            "working_seconds",
                            "worker_seconds",
                            "rows_per_second",
                            "bytes_per_second",
                        ),
                        _NUMBER,
                    ),
                },
                "A chunk that completed twice counts once, except in the redone figures.",
            ),
            "phases": _list(
                _SHARE, "The drivers' phases, in order; they add up to active_seconds."
            ),
            "attempts": _list(
                _object(
                    {
                        **dict.fromkeys(("started", "finished"), _NUMBER),
                        **dict.fromkeys(("state", "driver", "code", "commit"), _TEXT),
                        "phases": _list(
                            _object({"name": _TEXT, "started": _NUMBER, "seconds": _NUMBER})
                        ),
                        "requests": _REQUESTS,
                        "errors": _list(_TEXT),
                    }
                ),
                "What each driver did, oldest first.",
            ),
            "versions": _list(
                _object(
                    {"code": _TEXT, "commit": _TEXT, "chunks": _COUNT, "windows": _list(_TEXT)}
                ),
                "Versions of the code, and the chunks and windows that they made.",
            ),
            "pruned": {
                "anyOf": [
                    {"type": "null"},
                    _object(dict.fromkeys((f.name for f in fields(Pruned)), _COUNT)),
                ]
            },
            "largest_inputs": _list(_FILE, f"At most {MAX_FILES}."),
            "largest_outputs": _list(_FILE, f"At most {MAX_FILES}."),
            "costs": _list(
                _object({"name": _TEXT, "amount": _NUMBER, "price": _NUMBER, "cost": _NUMBER}),
                "Use times price; empty if the settings have no prices.",
            ),
            "advice": _list(_object({"headline": _TEXT, "text": _TEXT})),
            "time": _list(_SHARE, "Where the workers' time went while chunks were mapped."),
            "durations": {
                "anyOf": [
                    {"type": "null"},
                    _object(
                        {
                            **dict.fromkeys(("minimum", "maximum", "mean"), _NUMBER),
                            "quantiles": {"type": "object", "additionalProperties": _NUMBER},
                        },
                        "Seconds per completion; quantiles by their share, e.g. '0.95'.",
                    ),
                ]
            },
            "throughput": _list(
                _object(
                    dict.fromkeys(("start", "stop", "rows_per_second", "bytes_per_second"), _NUMBER)
                )
            ),
            "workers": _list(
                _object(
                    {
                        "worker": _TEXT,
                        "chunks": _COUNT,
                        "rows_in": _COUNT,
                        "bytes_in": _COUNT,
                        "busy_seconds": _NUMBER,
                        "memory": _COUNT,
                        "first": _NUMBER,
                        "last": _NUMBER,
                    }
                )
            ),
            "failures": _FAILURES,
            "groups": {
                "anyOf": [
                    {"type": "null"},
                    _object(
                        {
                            "function": _TEXT,
                            "by": _list(_TEXT),
                            "params": _TEXTS,
                            **dict.fromkeys(
                                ("pieces", "done", "failed", "rows_in", "rows_out", "bytes_out"),
                                _COUNT,
                            ),
                            **dict.fromkeys(("seconds", "longest"), _NUMBER),
                            "failures": _FAILURES,
                        },
                        "What was mapped over the groups of the reduced result.",
                    ),
                ]
            },
            "estimates": _list(
                _object(
                    {
                        "name": _TEXT,
                        "unit": {"enum": ["seconds", "bytes"]},
                        "expected": {"anyOf": [_NUMBER, {"type": "null"}]},
                        "actual": {"anyOf": [_NUMBER, {"type": "null"}]},
                    }
                ),
                "Estimates before the run, next to its figures; empty unless it is done.",
            ),
            "checks": _list(
                _object(
                    {
                        "name": _TEXT,
                        "outcome": {"enum": ["passed", "warned", "quarantined", "refused"]},
                        "found": _TEXT,
                        "examples": _list(_TEXT),
                    }
                ),
                "Checks of the result, with rows that failed.",
            ),
            "not_counted": _list(
                _TEXT, "One sentence per kind of entry that this run cannot have written."
            ),
            "chunks": _object(
                {
                    "complete": {"type": "boolean"},
                    "completions": _COUNT,
                    "columns": _object(
                        {name: {"type": "array"} for name in COMPLETION_SCHEMA},
                        "One array per column, all of the same length, in order of index.",
                    ),
                }
            ),
        }
    ),
}
"""JSON Schema of render_json(). Increment VERSION with any change that breaks readers."""


def build_json(report: RunReport) -> str:
    """Render the report as JSON on one line, without NaN or infinities."""
    clock = run_timeline.make_clock(report)
    spans = run_timeline.spans(report, clock)
    totals = run_figures.totals(report, clock)
    durations = run_figures.durations(report.completions["seconds"])
    time = run_figures.time_shares(report, spans)
    run = asdict(report.run)
    for name in ("environment", "tables", "params", "schema"):
        run[name] = dict(run[name])
    value = {
        "schema": "chunkmap.run-report",
        "version": VERSION,
        "run": run,
        "clock": {
            "origin": clock.origin,
            "finish": clock.finish,
            "pauses": [{"start": start, "stop": stop} for start, stop in clock.pauses],
        },
        "totals": {
            **asdict(totals),
            "chunks_left": totals.chunks_left,
            "rows_per_second": totals.rows_per_second,
            "bytes_per_second": totals.bytes_per_second,
        },
        "phases": [asdict(share) for share in run_figures.phase_shares(report, clock)],
        "attempts": [asdict(attempt) for attempt in report.attempts],
        "versions": [asdict(version) for version in report.versions],
        "pruned": None if report.pruned is None else asdict(report.pruned),
        "largest_inputs": run_figures.largest(report.inputs, MAX_FILES).to_dicts(),
        "largest_outputs": run_figures.largest(report.outputs, MAX_FILES).to_dicts(),
        "costs": [asdict(cost) for cost in run_figures.costs(report, totals)],
        "advice": [found._asdict() for found in advice(report, totals, time)],
        "time": [asdict(share) for share in time],
        "durations": durations
        and {**asdict(durations), "quantiles": {str(q): v for q, v in durations.quantiles}},
        "throughput": run_timeline.throughput(spans, clock.active_seconds).to_dicts()
        if spans.height
        else [],
        "workers": run_figures.per_worker(spans).to_dicts(),
        "failures": _failures(report.failures),
        "groups": None if report.groups is None else _groups(report.groups),
        "estimates": [asdict(each) for each in report.estimates],
        "checks": [asdict(each) for each in report.checks],
        "not_counted": list(report.not_counted),
        "chunks": _chunks(report.completions),
    }
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return escaped_json(text)  # It may be shown in a terminal.


def _failures(failures: pl.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            **asdict(group),
            "message": group.message[:MAX_MESSAGE],
            "trace": group.trace[:MAX_MESSAGE],
        }
        for group in run_figures.failure_groups(failures)[:MAX_GROUPS]
    ]


def _groups(mapped: MappedGroups) -> dict[str, Any]:
    # Requests and memory are among the totals.
    names = [part.name for part in fields(mapped) if part.name not in ("requests", "memory")]
    values = {name: getattr(mapped, name) for name in names}
    return values | {"params": dict(mapped.params), "failures": _failures(mapped.failures)}


def _chunks(completions: pl.DataFrame) -> dict[str, Any]:
    ordered = completions.sort("index", "started", "attempt")
    complete = ordered.height <= MAX_CHUNKS
    if not complete:
        ordered = ordered.with_row_index("at")
        step = -(-ordered.height // (MAX_CHUNKS - MAX_SLOWEST))
        slow = ordered.top_k(MAX_SLOWEST, by="seconds")["at"]
        ordered = ordered.filter((pl.col("at") % step == 0) | pl.col("at").is_in(slow.implode()))
    columns = ordered.select(list(COMPLETION_SCHEMA)).to_dict(as_series=False)
    return {"complete": complete, "completions": completions.height, "columns": columns}
