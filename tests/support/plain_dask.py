"""Start a Dask cluster as users do who know nothing of chunkmap."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Client, LocalCluster


@contextmanager
def plain_client(**options: Any) -> Iterator[Client]:
    """Yield a client of a cluster of one worker with one thread.

    Dask's nannies leave variables in this process, which workers of later clusters would inherit.
    """
    before = dict(os.environ)
    try:
        with (
            LocalCluster(
                n_workers=1,
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",
                host="127.0.0.1",
                **options,
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
