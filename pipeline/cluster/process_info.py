"""Describe a process of the cluster: a worker, the scheduler, a client."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from types import MappingProxyType
from typing import Any

PACKAGES = ("chunkmap", "distributed", "polars", "prefect", "pyarrow")
"""Packages whose versions must be the same in the whole cluster, as must Python's."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process of the cluster."""

    host: str
    pid: int
    versions: dict[str, str]
    clock: float
    """Unix seconds by the clock of this process."""
    open_files: int
    """Maximum number of open files."""
    cores: int
    memory: int
    """Bytes of memory that the container, or the machine, has."""
    polars_threads: int
    expires: dict[str, float] = field(default_factory=dict)
    """Unix seconds at which its certificates (`ca`, `cert`) expire."""
    prefect_secrets: tuple[str, ...] = ()
    """Names of Prefect's settings that hold a secret there; workers must have none."""
    at_work: list[dict[str, Any]] = field(default_factory=list)
    """Batches that it maps: run, batch, chunks, done, since."""


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python (without its patch level) and of PACKAGES."""
    found = {"python": ".".join(python_version().split(".")[:2])}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return MappingProxyType(found)


def about() -> ProcessInfo:
    """Describe this process."""
    import polars

    from pipeline import metrics
    from pipeline.cluster.resources import machine

    cores, memory = machine()
    return ProcessInfo(
        host=socket.gethostname(),
        pid=os.getpid(),
        versions=dict(versions()),
        clock=time.time(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        cores=cores,
        memory=memory,
        polars_threads=polars.thread_pool_size(),
        expires=_expiries(),
        at_work=[asdict(batch) for batch in list(metrics.active_batches.values())],
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
