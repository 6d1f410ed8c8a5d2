"""What Prefect would do in a worker process only when its first task run is there."""

from __future__ import annotations

from typing import Any

from prefect.filesystems import LocalFileSystem


def dask_setup(worker: Any) -> None:
    """Import what is registered with Prefect, Redis' client among it: 0.4 s in every worker.

    A task run waits for it whose context names a file system, as all of ours do.

    Args:
        worker: The Dask worker, whose preload this is.
    """
    LocalFileSystem.get_block_class_from_key(LocalFileSystem.get_block_type_slug())
