"""Telling a running cluster how many workers it is to have."""

from __future__ import annotations

from importlib import import_module

from pipeline.cluster.client import cluster_of
from pipeline.config.sections import DaskSettings
from pipeline.errors import EngineUnavailableError, UsageError

HINT = (
    "in compose: docker compose -f docker-compose.dask.yml up -d --scale dask-worker=N; a cluster "
    "of a cluster class is scaled by its name (dask.cluster_kwargs.name)"
)


def scale_cluster(settings: DaskSettings, workers: int) -> int:
    """Ask for so many workers; those that go hand back their batches first.

    Returns:
        How many there were.

    Raises:
        EngineUnavailableError: there is no running cluster.
        UsageError: it cannot be told from here.
    """
    if settings.cluster_class:
        return _by_name(settings, workers)
    with cluster_of(settings) as cluster:
        before = len(cluster.workers())
        if not cluster.scale(workers):
            raise UsageError(
                f"whoever started the workers of {settings.scheduler} scales them, not chunkmap",
                HINT,
            )
        return before


def _by_name(settings: DaskSettings, workers: int) -> int:
    """A cluster that its class finds again by its name, as dask-kubernetes does."""
    assert settings.cluster_class is not None, "the caller has looked"
    module, _, name = settings.cluster_class.replace(":", ".").rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise EngineUnavailableError(
            f"there is no cluster class {settings.cluster_class} (dask.cluster_class): {error}",
            "install its package, or mend the setting",
        ) from error
    own = settings.cluster_kwargs.get("name")
    if own is None or not hasattr(found, "from_name"):
        raise UsageError(
            f"{settings.cluster_class} is started anew for each run, and ends with it",
            "set dask.cluster_kwargs.n_workers, or dask.adapt, for the next one",
        )
    kwargs = {
        name: settings.cluster_kwargs[name]
        for name in ("namespace",)
        if name in settings.cluster_kwargs
    }
    with found.from_name(own, **kwargs) as cluster:
        before = len(cluster.scheduler_info["workers"])
        cluster.scale(workers)
    return before
