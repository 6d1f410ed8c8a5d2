"""`chunkmap plan` and `check`: look before anything is written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.output import (
    columns,
    out,
    plural,
    print_json,
    say,
    show_pairs,
    size,
    warn,
)
from pipeline.config.job import Job, load_job
from pipeline.config.settings import load_settings

if TYPE_CHECKING:
    import polars as pl

    from pipeline.runs.driver.dry_run import Trial
    from pipeline.runs.driver.estimate import Estimate
    from pipeline.runs.driver.plan import PlannedInput

BAR = 40
"""Characters of the longest bar of a histogram."""


def plan(path: Path, environment: str | None, *, explain: bool, as_json: bool) -> None:
    """Show what a job would run."""
    job, settings = load_job(path), load_settings(environment)
    from pipeline.runs.driver.estimate import estimate
    from pipeline.runs.driver.plan import plan_input
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.storage import open_storage

    storage = open_storage(settings)
    with explain_unreachable_s3(settings):
        planned = plan_input(job, settings, storage)
        expected = estimate(storage, job, planned.result.plan)
    if as_json:
        figures = {**planned.result.explain.to_dict(), "estimate": asdict(expected)}
        print_json({"plan": planned.result.plan.id, **figures, "columns": planned.probe.columns})
        return
    _print_plan(planned, job)
    if explain:
        _print_explain(planned)
        _print_estimate(expected)
    for warning in planned.result.explain.warnings:
        warn(warning)


def _print_plan(planned: PlannedInput, job: Job) -> None:
    found = planned.result.explain
    columns = planned.probe.columns
    rows = {
        "objects": f"{found.objects_planned:,} of {found.objects_listed:,} listed",
        "row groups": f"{found.row_groups - found.row_groups_pruned:,} of {found.row_groups:,}",
        "rows": f"{found.rows:,}",
        "chunks": f"{found.chunks:,} ({found.fragments:,} fragments)",
        "bytes": f"{size(found.bytes_to_read)} to read of {size(found.bytes_listed)} stored, "
        f"{size(found.bytes_decoded)} decoded",
        "columns": ", ".join(columns) if columns else "all (what is read could not be told)",
        "output": f"{job.output.uri}, mode {job.output.mode}",
        "planned in": f"{found.seconds:.2f} s, {found.requests:,} requests",
    }
    show_pairs(f"plan {planned.result.plan.id[:16]} (nothing was written)", rows)


def _print_estimate(expected: Estimate) -> None:
    time = "unknown: no earlier run of this transform to this output"
    if expected.seconds is not None:
        time = (
            f"{expected.seconds:,.0f} s to map, with the {expected.workers} workers of run "
            f"{expected.run}"
        )
    memory = f"about {size(expected.memory_bytes)} a worker thread, by sizes"
    show_pairs("expected", {"time": time, "memory": memory})


def _print_explain(planned: PlannedInput) -> None:
    found = planned.result.explain
    rows = {
        "pruned by partition": f"{found.objects_pruned:,} objects",
        "pruned by statistics": f"{found.row_groups_pruned:,} row groups, "
        f"{found.objects_without_rows:,} whole objects",
        "cut": f"{found.row_groups_cut:,} row groups, into {found.parts:,} chunks",
        "left out": f"{found.objects_hidden:,} hidden, {found.objects_empty:,} empty, "
        f"{found.objects_unnamed:,} without a Parquet name, {found.objects_excluded:,} excluded, "
        f"{found.objects_skipped:,} bad",
        "footers": f"{found.footers_read:,} read, {found.footers_reused:,} known before",
    }
    show_pairs("why", rows)
    sizes = found.chunk_sizes
    if sizes is not None:
        most = max(count for _, _, count in sizes.histogram)
        say(
            f"chunks by decoded size (median {size(sizes.median)}, 95% below {size(sizes.p95)}, "
            f"most {size(sizes.most)})"
        )
        for low, high, count in sizes.histogram:
            bar = "█" * max(1 if count else 0, round(BAR * count / most))
            say(f"  {size(low):>9} – {size(high):<9} {count:>9,} {bar}")


def check(path: Path, environment: str | None, *, rows: int, as_json: bool) -> None:
    """Try a transform on one small chunk."""
    job, settings = load_job(path), load_settings(environment)
    from pipeline.runs.driver.dry_run import try_transform
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.storage import open_storage

    with explain_unreachable_s3(settings):
        trial = try_transform(job, settings, open_storage(settings), rows)
    if as_json:
        _print_trial_json(trial)
    else:
        _print_trial(trial, job, rows)


def _print_trial(trial: Trial, job: Job, rows: int) -> None:
    import polars as pl

    figures = {
        "rows": f"{trial.rows_in:,} in, {trial.rows_out:,} out",
        "cut in two": f"{trial.rows_out_halves:,} out",
        "reads": f"{len(trial.columns_read)} of {len(trial.schema_in)} columns",
        "code": f"{trial.code}, of {plural(trial.definitions, 'definition')}",
        **{f"table {uri}": version for uri, version in trial.tables.items()},
    }
    show_pairs(f"{job.transform} on one chunk of {trial.rows_in:,} rows", figures)
    out.print()
    out.print(columns(("column", "in", "out", ""), _schemas(trial)))
    out.print()
    with pl.Config(tbl_rows=rows, tbl_hide_dataframe_shape=True, tbl_width_chars=out.width):
        out.print(str(trial.head))
    for note in trial.notes:
        warn(note)
    if trial.differs and job.reduce is not None:
        warn(trial.differs)
    elif trial.differs:
        warn(
            f"{trial.differs}. A transform that groups, sorts or drops duplicates does so within "
            "each chunk, and where chunks are cut is not part of your question."
        )


def _schemas(trial: Trial) -> list[tuple[str, str, str, str]]:
    """A line for each column: its type before and after, and what becomes of it."""
    before, after = _schema(trial.schema_in), _schema(trial.schema_out)
    return [
        (name, before.get(name, ""), after.get(name, ""), _fate(name, trial))
        for name in {**before, **after}
    ]


def _fate(name: str, trial: Trial) -> str:
    if name not in trial.schema_in:
        return "new"
    said = ["read"] if name in trial.columns_read else ["not read"]
    return ", ".join(said if name in trial.schema_out else [*said, "dropped"])


def _schema(schema: pl.Schema) -> dict[str, str]:
    return {name: str(kind) for name, kind in schema.items()}


def _print_trial_json(trial: Trial) -> None:
    data = asdict(trial)
    data["schema_in"] = _schema(trial.schema_in)
    data["schema_out"] = _schema(trial.schema_out)
    data["head"] = trial.head.to_dicts()
    data["chunk"] = trial.chunk.id
    print_json(data)
