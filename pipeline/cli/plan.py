"""Show a plan, or try a transform, without writing anything: `chunkmap plan` and `check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.output import columns, out, print_json, say, show_pairs, warn
from pipeline.config.job import Job, load_job
from pipeline.config.settings import load_settings
from pipeline.report.humanize import byte_size, duration, plural

if TYPE_CHECKING:
    import polars as pl

    from pipeline.runs.driver.dry_run import GroupTrial, Trial
    from pipeline.runs.driver.estimate import Estimate
    from pipeline.runs.driver.plan import PlannedInput
    from pipeline.runs.driver.plan_changes import PlanChanges
    from pipeline.runs.worker.keep import Comparison

_LAYOUT_KEYS = {"partition_by", "file_bytes", "max_partitions", "sort_by", "keep", "rename"}
"""Keys of the output that say into which files rows go."""
BAR_WIDTH = 40
"""Characters of the longest bar of the histogram."""


def plan(
    path: Path,
    environment: str | None,
    *,
    changes: Sequence[str] = (),
    explain: bool,
    as_json: bool,
) -> None:
    """Show what a job would run."""
    job, settings = load_job(path, changes), load_settings(environment)
    from pipeline.runs.driver.estimate import estimate
    from pipeline.runs.driver.plan import plan_input
    from pipeline.runs.driver.plan_changes import compare_with_published
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.storage import open_storage

    storage = open_storage(settings)
    with explain_unreachable_s3(settings):
        planned = plan_input(job, settings, storage)
        expected = estimate(
            storage, job, planned.result.plan, settings.dask.threads_per_worker or 1
        )
        changed = compare_with_published(storage, job, settings, planned.result.plan)
    if as_json:
        figures = {**planned.result.explain.to_dict(), "estimate": asdict(expected)}
        figures |= {"layout": job.output.model_dump(include=_LAYOUT_KEYS)}
        figures |= {"then": job.then and job.then.model_dump(mode="json")}
        figures |= {"columns": planned.probe.columns, "changes": changed and asdict(changed)}
        print_json({"plan": planned.result.plan.id, **figures})
        return
    _print_plan(planned, job, expected, changed)
    if explain:
        _print_explain(planned)
        _print_estimate(expected)
    for warning in planned.result.explain.warnings:
        warn(warning)


def _print_plan(
    planned: PlannedInput, job: Job, expected: Estimate, changed: PlanChanges | None
) -> None:
    from pipeline.runs.driver.layout_text import kept_columns_text, layout_text
    from pipeline.runs.driver.plan_changes import changes_text
    from pipeline.runs.driver.then_stage import then_text

    explain = planned.result.explain
    columns = planned.probe.columns
    kept = kept_columns_text(job.output, planned, expected.bytes_to_read)
    rows = {
        "objects": f"{explain.objects_planned:,} of {explain.objects_listed:,} listed",
        "row groups": f"{explain.row_groups - explain.row_groups_pruned:,} of "
        f"{explain.row_groups:,}",
        "rows": f"{explain.rows:,}",
        "chunks": f"{explain.chunks:,} ({plural(explain.fragments, 'fragment')})",
        "bytes": f"{byte_size(expected.bytes_to_read)} to read of "
        f"{byte_size(explain.bytes_listed)} stored, {byte_size(explain.bytes_decoded)} decoded",
        "columns": ", ".join(columns) if columns else "all (the columns read are unknown)",
        **{
            "output" if not job.outputs else f"output {name}": f"{output.uri}, mode {output.mode}"
            for name, output in job.all_outputs.items()
        },
        **({"layout": layout} if (layout := layout_text(job.output)) else {}),
        **({"then": then} if (then := then_text(job)) else {}),
        **({"kept": kept} if kept else {}),
        "changes": changes_text(changed, planned.version),
        "planned in": f"{explain.seconds:.2f} s, {plural(explain.requests, 'request')}",
    }
    show_pairs(f"plan {planned.result.plan.id[:16]} (nothing was written)", rows)


def _print_estimate(expected: Estimate) -> None:
    time = "unknown: no earlier run of this transform to this output"
    if expected.seconds is not None:
        time = (
            f"{duration(expected.seconds)} with {plural(expected.workers or 1, 'worker')}, as run "
            f"{expected.run} had"
        )
    source = "from sizes" if expected.run is None else f"from sizes and run {expected.run}"
    memory = f"about {byte_size(expected.memory_bytes)} per worker, estimated {source}"
    show_pairs("expected", {"time": time, "memory": memory})


def _print_explain(planned: PlannedInput) -> None:
    explain = planned.result.explain
    rows = {
        "pruned by partition": plural(explain.objects_pruned, "object"),
        "pruned by statistics": f"{plural(explain.row_groups_pruned, 'row group')}, "
        f"{plural(explain.objects_without_rows, 'whole object')}",
        "cut": f"{plural(explain.row_groups_cut, 'row group')}, into "
        f"{plural(explain.parts, 'chunk')}",
        "left out": f"{explain.objects_hidden:,} hidden, {explain.objects_empty:,} empty, "
        f"{explain.objects_unnamed:,} without a Parquet name, "
        f"{explain.objects_excluded:,} excluded, {explain.objects_skipped:,} bad",
        "footers": f"{explain.footers_read:,} read, {explain.footers_reused:,} from the cache",
    }
    show_pairs("why", rows)
    sizes = explain.chunk_sizes
    if sizes is not None:
        max_count = max(count for _, _, count in sizes.histogram)
        say(
            f"chunks by decoded size (median {byte_size(sizes.median)}, "
            f"95% below {byte_size(sizes.p95)}, largest {byte_size(sizes.most)})"
        )
        for low, high, count in sizes.histogram:
            bar = "█" * max(1 if count else 0, round(BAR_WIDTH * count / max_count))
            say(f"  {byte_size(low):>9} – {byte_size(high):<9} {count:>9,} {bar}")


def check(
    path: Path, environment: str | None, *, changes: Sequence[str] = (), rows: int, as_json: bool
) -> None:
    """Try a transform on one small chunk."""
    job, settings = load_job(path, changes), load_settings(environment)
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
    names = [f" {name}" for name in job.outputs] or [""]
    frames = (trial.head, *trial.further.values())
    for name, frame in zip(names, frames, strict=True):
        out.print()
        out.print(columns(("column", "in", f"out{name}", ""), _schemas(trial, frame.schema)))
        out.print()
        with pl.Config(tbl_rows=rows, tbl_hide_dataframe_shape=True, tbl_width_chars=out.width):
            out.print(str(frame))
    if trial.group is not None:
        _print_group(trial.group, job, rows)
    if trial.ways is not None:
        _print_ways(trial.ways)
    for note in trial.notes:
        warn(note)
    if trial.differs and job.reduce is not None:
        warn(trial.differs)
    elif trial.differs:
        warn(
            f"{trial.differs}. A transform that groups, sorts or drops duplicates does so within "
            "each chunk, so its result depends on where chunks are cut."
        )


def _print_ways(ways: Comparison) -> None:
    if ways.reason:
        warn(f"The file of this object would be rewritten: {ways.reason}.")
        return
    out.print()
    figures = {
        "kept": f"{plural(ways.kept, 'column')}, with {byte_size(ways.copied)} copied where it is",
        "moved": f"{byte_size(ways.read)} read and {byte_size(ways.added)} written, instead of "
        f"{byte_size(ways.rewritten)} for a rewritten file",
        "compared": "every value and type is the same as in a rewritten file"
        if ways.differs is None
        else f"it differs from a rewritten file: {ways.differs}",
    }
    show_pairs("its file", figures)


def _print_group(group: GroupTrial, job: Job, rows: int) -> None:
    import polars as pl

    assert job.then is not None, "only a job with `then` has groups"
    out.print()
    figures = {
        "rows": f"{group.rows_in:,} in, {group.rows_out:,} out",
        "groups": f"{group.groups:,} in the reduced result of this chunk",
    }
    show_pairs(f"{job.then.function} on the group {group.key}", figures)
    with pl.Config(tbl_rows=rows, tbl_hide_dataframe_shape=True, tbl_width_chars=out.width):
        out.print(str(group.head))


def _schemas(trial: Trial, result: pl.Schema) -> list[tuple[str, str, str, str]]:
    """Make one row per column: its type before and after, and whether it is read or dropped."""
    before, after = _schema(trial.schema_in), _schema(result)
    return [
        (name, before.get(name, ""), after.get(name, ""), _column_use(name, trial, result))
        for name in {**before, **after}
    ]


def _column_use(name: str, trial: Trial, result: pl.Schema) -> str:
    if name not in trial.schema_in:
        return "new"
    use = "read" if name in trial.columns_read else "not read"
    return use if name in result else f"{use}, dropped"


def _schema(schema: pl.Schema) -> dict[str, str]:
    return {name: str(kind) for name, kind in schema.items()}


def _print_trial_json(trial: Trial) -> None:
    data = asdict(trial)
    data["schema_in"] = _schema(trial.schema_in)
    data["schema_out"] = _schema(trial.schema_out)
    data["head"] = trial.head.to_dicts()
    data["further"] = {
        name: {"schema": _schema(frame.schema), "head": frame.to_dicts()}
        for name, frame in trial.further.items()
    }
    data["chunk"] = trial.chunk.id
    if trial.group is not None:
        data["group"]["schema_out"] = _schema(trial.group.schema_out)
        data["group"]["head"] = trial.group.head.to_dicts()
    print_json(data)
