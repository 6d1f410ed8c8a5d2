"""Records in pytest-benchmark's own format, so that its tools work on them.

pytest-benchmark list; pytest-benchmark compare --group-by=group
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

from benchmarks.suite.record import Record, Result


def save(record: Record, folder: Path) -> Path:
    """Write a record below a folder such as .benchmarks; returns the file."""
    place = folder / _machine_id()
    place.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name[:4]) for path in place.glob("[0-9][0-9][0-9][0-9]_*.json")]
    path = place / f"{max(numbers, default=0) + 1:04d}_{record.machine.commit}_{record.id}.json"
    path.write_text(json.dumps(as_pytest_benchmark(record), indent=1), encoding="utf-8")
    return path


def as_pytest_benchmark(record: Record) -> dict[str, Any]:
    """The record as pytest-benchmark would have saved it."""
    from importlib import metadata

    machine = record.machine
    return {
        "machine_info": {
            "node": platform.node(),
            "processor": machine.cpu,
            "machine": platform.machine(),
            "python_version": machine.python,
            "python_implementation": platform.python_implementation(),
            "python_implementation_version": machine.python,
            "python_compiler": platform.python_compiler(),
            "python_build": list(platform.python_build()),
            "system": platform.system(),
            "release": machine.system,
            "cpu": {"brand_raw": machine.cpu, "count": machine.cores},
        },
        "commit_info": {
            "id": machine.commit,
            "time": record.created.astimezone(UTC).isoformat(),
            "dirty": machine.dirty,
            "branch": machine.branch,
            "project": "chunkmap",
        },
        "benchmarks": [_entry(result) for result in record.results if result.state == "ok"],
        "datetime": record.created.astimezone(UTC).isoformat(),
        "version": metadata.version("pytest-benchmark"),
    }


def _entry(result: Result) -> dict[str, Any]:
    param = "-".join(
        [result.subject]
        + ([f"{result.workers} workers"] if result.workers else [])
        + ([f"{result.tasks} tasks"] if result.tasks else [])
    )
    name = f"{result.workload}[{param}]"
    return {
        "group": result.workload,
        "name": name,
        "fullname": f"benchmarks/{name}",
        "params": {"subject": result.subject},
        "param": param,
        "extra_info": {"peak_bytes": result.peak_bytes(), "cpu_seconds": result.cpu_seconds()},
        "options": {
            "disable_gc": False,
            "timer": "perf_counter",
            "min_rounds": 1,
            "max_time": 0.0,
            "min_time": 0.0,
            "warmup": False,
        },
        "stats": stats_of(result.samples()),
    }


def stats_of(samples: Sequence[float]) -> dict[str, Any]:
    """pytest-benchmark's statistics of some seconds."""
    data = sorted(samples)
    mean, middle = statistics.fmean(data), statistics.median(data)
    low, _, high = statistics.quantiles(data, n=4) if len(data) > 1 else (middle,) * 3
    spread = statistics.stdev(data) if len(data) > 1 else 0.0
    near = [x for x in data if low - 1.5 * (high - low) <= x <= high + 1.5 * (high - low)]
    far = sum(1 for x in data if abs(x - mean) > spread)
    return {
        "min": data[0],
        "max": data[-1],
        "mean": mean,
        "stddev": spread,
        "rounds": len(data),
        "median": middle,
        "iqr": high - low,
        "q1": low,
        "q3": high,
        "iqr_outliers": len(data) - len(near),
        "stddev_outliers": far,
        "outliers": f"{far};{len(data) - len(near)}",
        "ld15iqr": near[0],
        "hd15iqr": near[-1],
        "ops": 1 / mean if mean else 0.0,
        "total": sum(data),
        "data": list(samples),
        "iterations": 1,
    }


def _machine_id() -> str:
    version = ".".join(platform.python_version_tuple()[:2])
    return (
        f"{platform.system()}-{platform.python_implementation()}-{version}-"
        f"{platform.architecture()[0]}"
    )
