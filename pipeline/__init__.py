"""Map a Polars function over the chunks of a Parquet dataset in S3, on Dask, run by Prefect.

Read top-down: `cli` → `flows` → `load` → `runs` → `table` → `storage` → `config`. Imports go down
only. Only `flows` imports Prefect, only `cluster` imports Dask, and only `storage` imports S3
clients.

Functions for transforms and for readers of an output are imported on first use, which keeps
`chunkmap --help` fast.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.load.api import load_output
    from pipeline.storage import read_table
    from pipeline.table.scan import scan_output

__all__ = ["load_output", "read_table", "scan_output"]


def __getattr__(name: str) -> Any:
    if name == "scan_output":
        from pipeline.table.scan import scan_output

        return scan_output
    if name == "load_output":
        from pipeline.load.api import load_output

        return load_output
    if name == "read_table":
        from pipeline.storage import read_table

        return read_table
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
