"""`chunkmap plan` and `check`: look before anything is written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import polars as pl

from pipeline.checking import Trial, try_transform
from pipeline.cli.screen import complain, out, pairs, print_json, size
from pipeline.job import load_job
from pipeline.planning import PlannedInput, plan_input
from pipeline.settings import load_settings
from pipeline.storage import open_storage

BAR = 40
"""Characters of the longest bar of a histogram."""


def plan(path: Path, environment: str | None, *, explain: bool, as_json: bool) -> None:
    """Show what a job would run."""
    settings = load_settings(environment)
    planned = plan_input(load_job(path), settings, open_storage(settings))
    if as_json:
        figures = planned.result.explain.to_dict()
        print_json({"plan": planned.result.plan.id, **figures, "columns": planned.probe.columns})
        return
    _print_plan(planned)
    if explain:
        _print_explain(planned)
    for warning in planned.result.explain.warnings:
        complain(warning)


def _print_plan(planned: PlannedInput) -> None:
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
        "planned in": f"{found.seconds:.2f} s, {found.requests:,} requests",
    }
    out.print(pairs(f"plan {planned.result.plan.id[:16]} (nothing was written)", rows))


def _print_explain(planned: PlannedInput) -> None:
    found = planned.result.explain
    rows = {
        "pruned by partition": f"{found.objects_pruned:,} objects",
        "pruned by statistics": f"{found.row_groups_pruned:,} row groups, "
        f"{found.objects_without_rows:,} whole objects",
        "left out": f"{found.objects_hidden:,} hidden, {found.objects_empty:,} empty, "
        f"{found.objects_unnamed:,} without a Parquet name, {found.objects_excluded:,} excluded, "
        f"{found.objects_skipped:,} bad",
        "footers": f"{found.footers_read:,} read, {found.footers_reused:,} known before",
    }
    out.print(pairs("why", rows))
    sizes = found.chunk_sizes
    if sizes is not None:
        most = max(count for _, _, count in sizes.histogram)
        out.print("chunks by decoded size")
        for low, high, count in sizes.histogram:
            bar = "█" * max(1 if count else 0, round(BAR * count / most))
            out.print(f"  {size(low):>10} – {size(high):<10} {count:>9,} {bar}")


def check(path: Path, environment: str | None, *, rows: int, as_json: bool) -> None:
    """Try a transform on one small chunk."""
    settings = load_settings(environment)
    trial = try_transform(load_job(path), settings, open_storage(settings), rows)
    if as_json:
        _print_trial_json(trial)
        return
    out.print(
        pairs(
            f"one chunk of {trial.rows_in:,} rows",
            {
                "reads": ", ".join(trial.columns_read),
                "in": _schema(trial.schema_in),
                "out": _schema(trial.schema_out),
                "rows": f"{trial.rows_in:,} in, {trial.rows_out:,} out",
                "cut in two": f"{trial.rows_out_halves:,} out",
            },
        )
    )
    with pl.Config(tbl_rows=rows, tbl_hide_dataframe_shape=True, tbl_width_chars=out.width):
        out.print(str(trial.head), markup=False)
    if trial.differs:
        complain(
            f"{trial.differs}. A transform that groups, sorts or drops duplicates does so within "
            "each chunk, and where chunks are cut is not part of your question."
        )


def _schema(schema: pl.Schema) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in schema.items())


def _print_trial_json(trial: Trial) -> None:
    data = asdict(trial)
    data["schema_in"] = {name: str(kind) for name, kind in trial.schema_in.items()}
    data["schema_out"] = {name: str(kind) for name, kind in trial.schema_out.items()}
    data["head"] = trial.head.to_dicts()
    data["chunk"] = trial.chunk.id
    print_json(data)
