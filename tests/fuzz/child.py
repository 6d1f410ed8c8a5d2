"""A process that reads Parquet files that may end it: a job a line on stdin, answers on stdout.

Before each stage it says so; whoever listens then knows in which one it died or hung.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Final, TextIO

import polars as pl

from partitioning import Plan
from partitioning.errors import FilterError
from partitioning.filters import Term
from pipeline.runs.worker import chunk_source, sparse_file
from tests.fuzz import corpus
from tests.fuzz.compared import Refused, difference, known_readers, plan_file, read_by, read_planned

_SLACK: Final = 24 << 20
"""Bytes that planning may take whatever the footer: caches, arenas of allocators, imports."""


def main(memory: int) -> None:
    """Do jobs until stdin ends.

    Args:
        memory: Bytes of address space above those of a process that has just begun.
    """
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print is no answer.
    _warm_up()
    limit = _status("VmSize") + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    originals: dict[str, pl.DataFrame] = {}
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps({"result": _do(job, originals, answers)}), file=answers)


def _warm_up() -> None:
    """Import, start threads, fill caches: what a process does once is not a footer's doing."""
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        for data in list(corpus.footers().values())[::10]:
            Path(file.name).write_bytes(data)
            plan = plan_file(file.name)
            if not isinstance(plan, Refused):
                read_planned(plan)


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        found = re.search(rf"^{name}:\s+(\d+) kB", file.read(), re.MULTILINE)
    assert found is not None, "Linux has these"
    return int(found[1]) << 10


def _stage(name: str, answers: TextIO) -> None:
    print(json.dumps({"stage": name}), file=answers)


def _do(job: dict[str, Any], originals: dict[str, pl.DataFrame], answers: TextIO) -> dict[str, Any]:
    in_ranges = bool(job.get("ranges"))
    chunk_source.WHOLE_BYTES = 0 if in_ranges else 512 << 10
    sparse_file.GAP_BYTES = 0 if in_ranges else 512 << 10
    skip = set(job["skip"])  # Of readers.
    original = _original(job, originals)
    _stage("planning", answers)
    try:
        plan, memory = _plan(job, original)
        if memory > 10 * job["footer"] + job.get("slack", _SLACK):
            return {"outcome": "memory", "detail": f"planning took {memory:,} bytes"}
        if isinstance(plan, Refused):
            return {"outcome": "refused in planning", "detail": plan.reason}
        if "reading" in skip:
            return {"outcome": "planned", "detail": ""}
        _stage("reading", answers)
        _fail(job.get("fault"))
        mine = read_planned(plan)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        kind = f"{type(error).__module__}.{type(error).__name__}"
        where = [f for f in traceback.extract_tb(error.__traceback__) if ".venv" not in f.filename]
        text = f"{kind}: {' '.join(str(error).split())} ({where[-1].name}, line {where[-1].lineno})"
        return {"outcome": "unnamed error", "detail": text}
    return _compare(job["path"], mine, original, skip, answers)


def _fail(how: str | None) -> None:
    """End or hang, as a decoder might: for the tests of whoever listens."""
    if how == "abort":
        os.abort()
    if how == "hang":
        time.sleep(60)


def _original(job: dict[str, Any], originals: dict[str, pl.DataFrame]) -> pl.DataFrame | None:
    path = job.get("original")
    if path is None:
        return None
    if path not in originals:
        plan = plan_file(path)
        frame = plan if isinstance(plan, Refused) else read_planned(plan)
        assert isinstance(frame, pl.DataFrame), f"{path}: {frame.reason}"
        originals[path] = frame
    return originals[path]


def _plan(job: dict[str, Any], original: pl.DataFrame | None) -> tuple[Plan | Refused, int]:
    """Plan with and without a filter; and how much memory it took at most."""
    before = _status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # The peak begins anew.
    plan = plan_file(job["path"])
    for term in _terms(job, original):
        with contextlib.suppress(FilterError):
            plan_file(job["path"], ((term,),))
    return plan, _status("VmHWM") - before


def _terms(job: dict[str, Any], original: pl.DataFrame | None) -> list[Term]:
    name = job.get("column")
    if original is None or name not in original.columns:
        return []
    known = original[name].drop_nulls()
    first = [known[0]] if known.len() else []
    equal = [
        Term(name, "==", value) for value in first if isinstance(value, str | bytes | int | float)
    ]
    return [*equal, Term(name, "is null")]


def _compare(
    path: str,
    mine: pl.DataFrame | Refused,
    original: pl.DataFrame | None,
    skip: set[str],
    answers: TextIO,
) -> dict[str, Any]:
    if isinstance(mine, pl.DataFrame) and original is not None and not difference(mine, original):
        return {"outcome": "equal", "detail": "the original"}
    found: dict[str, str] = {}
    for name in known_readers():
        if name in skip:
            continue
        _stage(name, answers)
        theirs = read_by(name, path)
        if isinstance(theirs, Refused):
            found[name] = "refuses"
        elif isinstance(mine, Refused):
            found[name] = "reads"
        else:
            found[name] = difference(mine, theirs) or "equal"
    detail = "; ".join(f"{name}: {what}" for name, what in found.items())
    if isinstance(mine, Refused):
        return {"outcome": "refused in reading", "detail": f"{mine.reason} ({detail})"}
    if "equal" in (found.get("polars"), found.get("pyarrow")):
        return {"outcome": "equal", "detail": detail}
    # DuckDB may read what Polars and pyarrow refuse.
    is_refused = all(what in ("refuses", "equal") for what in found.values())
    return {"outcome": "refused by others" if is_refused else "differs", "detail": detail}


if __name__ == "__main__":
    main(int(sys.argv[1]))
