"""Parquet files as bytes: written in row groups, composed of two, and checked strictly."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from partitioning.footer_columns import FooterEdit, StoredFooter, compose_footer

MAGIC, END = b"PAR1", 8


def written(table: pa.Table, groups: Sequence[int], **options: Any) -> bytes:
    """Write row groups of these numbers of rows."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        start = 0
        for rows in groups:
            writer.write_table(table.slice(start, rows), row_group_size=max(1, rows))
            start += rows
    return sink.getvalue()


def footer_of(file: bytes) -> bytes:
    """Metadata of a file, without its length and the magic bytes."""
    length = int.from_bytes(file[-END:-4], "little")
    return file[-END - length : -END]


def stored(file: bytes) -> StoredFooter:
    """Footer of a file, as it is composed with another."""
    return StoredFooter.read(footer_of(file), len(file))


def composed(old: bytes, new: bytes | None, edit: FooterEdit) -> bytes:
    """The old file's bytes up to its footer, the new column chunks, and the footer of both."""
    added = None if new is None else stored(new)
    end = stored(old).start
    footer = compose_footer(stored(old), added, end - len(MAGIC), edit)
    chunks = b"" if new is None or added is None else new[len(MAGIC) : added.start]
    return old[:end] + chunks + footer + len(footer).to_bytes(4, "little") + MAGIC


def check_file(file: bytes) -> None:
    """Assert what must hold of any Parquet file: offsets, sizes and counts that fit together."""
    assert file[:4] == file[-4:] == MAGIC
    end = len(file) - END - len(footer_of(file))
    metadata = pq.read_metadata(io.BytesIO(file))
    spans: list[tuple[int, int]] = []
    assert metadata.num_rows == sum(
        metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)
    )
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        assert group.num_columns == metadata.num_columns
        chunks = [group.column(at) for at in range(group.num_columns)]
        assert group.total_byte_size == sum(chunk.total_uncompressed_size for chunk in chunks)
        for at, chunk in enumerate(chunks):
            assert chunk.path_in_schema == metadata.schema.column(at).path
            assert chunk.num_values >= group.num_rows
            if metadata.schema.column(at).max_repetition_level == 0:
                assert chunk.num_values == group.num_rows
            if not chunk.num_values:
                continue
            starts = [chunk.data_page_offset]
            if chunk.has_dictionary_page:
                starts.append(chunk.dictionary_page_offset)
            spans.append((min(starts), min(starts) + chunk.total_compressed_size))
    spans.sort()
    assert all(4 <= start <= stop <= end for start, stop in spans)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))
