"""Verify the checksums of Parquet pages (CRC-32 in page headers), which Polars ignores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UnreadableObjectError


def verify_pages(path: str | Path, uri: str, numbers: Sequence[int], leaves: set[int]) -> None:
    """Decode columns of a local copy, and check each page against its checksum.

    Pages without a checksum pass: most writers store none. One column of one row group is in memory
    at a time.

    Args:
        path: Path of the copy, which has the bytes of these columns at their offsets.
        uri: URI of the object.
        numbers: Numbers of the copy's row groups in the object, for messages.
        leaves: Numbers of the columns in the footer.

    Raises:
        UnreadableObjectError: a page is damaged; names row group and column.
    """
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
        for at, group in enumerate(numbers):
            for leaf in sorted(leaves):
                try:
                    file.reader.read_row_group(at, column_indices=[leaf], use_threads=False)
                except (pa.ArrowException, OSError) as error:
                    column = file.metadata.schema.column(leaf).path
                    problem = f"row group {group}, column {column}: {error}"
                    raise UnreadableObjectError(uri, problem) from error
