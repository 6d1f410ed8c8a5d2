"""What a process of the cluster says of itself: a worker, the scheduler, a client."""

from __future__ import annotations

import os
import resource
import socket
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

PACKAGES = ("chunkmap", "distributed", "polars", "prefect", "pyarrow")
"""What has to be the same in the whole cluster, besides Python."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process of the cluster."""

    host: str
    pid: int
    versions: dict[str, str]
    clock: float
    """Unix seconds, as this process sees them."""
    open_files: int
    """Most files that it may have open."""
    cores: int
    memory: int
    """Bytes that the container, or the machine, lets it use."""
    polars_threads: int
    expires: dict[str, float] = field(default_factory=dict)
    """When its certificates (`ca`, `cert`) expire, in Unix seconds."""
    prefect_secrets: tuple[str, ...] = ()
    """Prefect's settings that hold a secret there; workers are to have none."""
    at_work: list[dict[str, Any]] = field(default_factory=list)
    """Batches that it is at: run, batch, chunks, done, since."""


def versions() -> dict[str, str]:
    """Of Python (without its patch level) and of the packages that matter."""
    found = {"python": ".".join(python_version().split(".")[:2])}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def about() -> ProcessInfo:
    """This process."""
    import polars

    from pipeline import metrics
    from pipeline.cluster.resources import machine

    cores, memory = machine()
    return ProcessInfo(
        host=socket.gethostname(),
        pid=os.getpid(),
        versions=versions(),
        clock=time.time(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        cores=cores,
        memory=memory,
        polars_threads=polars.thread_pool_size(),
        expires=_expiries(),
        at_work=[asdict(one) for one in list(metrics.active_batches.values())],
    )


def _expiries() -> dict[str, float]:
    from pipeline.cluster.certificates import expires
    from pipeline.config.settings import load_settings

    tls = load_settings().dask.tls
    return {
        name: expires(path.expanduser()).timestamp()
        for name, path in (("ca", tls.ca), ("cert", tls.cert))
        if path is not None
    }
