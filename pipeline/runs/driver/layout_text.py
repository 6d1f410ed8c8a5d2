"""Describe how a job lays out the files of its output."""

from __future__ import annotations

import polars as pl

from pipeline.config.job import Output
from pipeline.report.humanize import byte_size, count, plural
from pipeline.runs.driver.merge_planning import DEFAULT_FILE_BYTES
from pipeline.runs.driver.plan import PlannedInput


def layout_text(output: Output) -> str:
    """Describe partitions, sizes and order of an output's files; empty if all is at its default."""
    parts = []
    if output.partition_by is not None:
        parts.append(f"partitioned by {', '.join(output.partition_by)}")
    if output.merges:
        parts.append(f"files of about {byte_size(output.file_bytes or DEFAULT_FILE_BYTES)}")
    if output.sort_by:
        parts.append(f"sorted by {', '.join(output.sort_by)}")
    if output.row_group_rows is not None:
        parts.append(f"row groups of {count(output.row_group_rows)} rows")
    if output.row_group_bytes is not None:
        parts.append(f"row groups of {byte_size(output.row_group_bytes)}")
    if output.dictionary is not None:
        parts.append(f"dictionaries of {', '.join(output.dictionary)}")
    if output.page_index:
        parts.append("a page index")
    if output.keep is not None:
        named = "all columns" if output.keep == "all" else ", ".join(output.keep)
        parts.append(f"{named} kept as they are")
    if output.rename:
        parts.append(", ".join(f"{old} as {new}" for old, new in output.rename.items()))
    return "; ".join(parts)


def kept_columns_text(output: Output, planned: PlannedInput, to_read: int) -> str:
    """Describe what files will keep of the input's; empty if the job keeps nothing.

    Args:
        output: The output of the job.
        planned: Plan of its input.
        to_read: Estimated bytes that workers request.
    """
    if output.keep is None:
        return ""
    plan, new = planned.result.plan, planned.probe.new_columns
    names = plan.dtypes if output.keep == "all" else output.keep
    kept = [name for name in names if name not in new and name not in plan.hive_columns]
    size = byte_size(plan.object_bytes)
    return (
        f"{plural(len(kept), 'column')} as they are: {byte_size(to_read)} are read and up to "
        f"{size} copied where they are; to rewrite the files, {size} would be read and written"
    )


def kept_text(output: Output, completions: pl.DataFrame) -> str:
    """Describe what the files of a run keep of the input's; empty if the job keeps nothing.

    Args:
        output: The output of the job.
        completions: Completions of its chunks.
    """
    if output.keep is None or completions.is_empty():
        return ""
    copied, written = int(completions["copied"].sum()), int(completions["bytes_out"].sum())
    text = f"{byte_size(copied)} of {byte_size(written)} were copied where they are"
    rewritten = completions.filter(pl.col("rewritten") != "")
    if rewritten.height:
        reasons = rewritten["rewritten"].value_counts(sort=True)
        text += (
            f"; {plural(rewritten.height, 'file')} rewritten, most often because "
            f"{reasons['rewritten'][0]}"
        )
    return text
