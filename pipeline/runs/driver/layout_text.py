"""Describe how a job lays out the files of its output."""

from __future__ import annotations

from pipeline.config.job import Output
from pipeline.report.humanize import byte_size, count
from pipeline.runs.driver.merge_planning import DEFAULT_FILE_BYTES


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
    return "; ".join(parts)
