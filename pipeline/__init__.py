"""Execution: jobs, storage, runs and their engines.

Two functions are for transforms and for readers of an output; everything else is imported from the
submodules. Nothing is loaded until it is asked for: `chunkmap --help` pays for this file.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.storage import read_table
    from pipeline.table.scan import scan_output

__all__ = ["read_table", "scan_output"]


def __getattr__(name: str) -> Any:
    if name == "scan_output":
        from pipeline.table.scan import scan_output

        return scan_output
    if name == "read_table":
        from pipeline.storage import read_table

        return read_table
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
