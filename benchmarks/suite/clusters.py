"""A Dask cluster of this machine for one measurement, and the settings that name it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.cluster.certificates import make
from pipeline.cluster.local_cluster import start_local_cluster
from pipeline.config.sections import DaskSettings


@contextmanager
def local_cluster(
    workers: int, threads: int, environment: Mapping[str, str], memory: int | None = None
) -> Iterator[tuple[Any, DaskSettings]]:
    """Start a cluster, and stop it at the end.

    Args:
        workers: Worker processes.
        threads: Of each.
        environment: Variables of the workers.
        memory: Limit of one worker's memory in bytes. Default: an equal share of the machine.

    Yields:
        The cluster, and the settings of its clients: its address, and certificates for it.
    """
    with TemporaryDirectory(prefix="chunkmap-") as folder:
        make(Path(folder))

        def tls(part: str) -> dict[str, str]:
            files = {"ca": "ca.pem", "cert": f"{part}.pem", "key": f"{part}-key.pem"}
            return {name: str(Path(folder, file)) for name, file in files.items()}

        started = start_local_cluster(workers, threads, memory, environment, tls=tls("worker"))
        with started as cluster:
            settings = {"scheduler": cluster.scheduler_address, "tls": tls("client")}
            yield cluster, DaskSettings.model_validate(settings)
