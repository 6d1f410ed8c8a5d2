"""Scale a running cluster."""

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
    """Set the number of workers; those that are removed hand back their batches first.

    Returns:
        The number of workers before.

    Raises:
        EngineUnavailableError: There is no running cluster.
        UsageError: chunkmap cannot scale this cluster.
    """
    if settings.cluster_class:
        return _by_name(settings, workers)
    with cluster_of(settings) as cluster:
        before = len(cluster.workers())
        if not cluster.scale(workers):
            raise UsageError(
                f"chunkmap did not start the workers of {settings.scheduler}: it cannot scale them",
                HINT,
            )
        return before


def _by_name(settings: DaskSettings, workers: int) -> int:
    """Scale a cluster that its class can find by name, as in dask-kubernetes."""
    assert settings.cluster_class is not None, "the caller has checked"
    module, _, class_name = settings.cluster_class.replace(":", ".").rpartition(".")
    try:
        cluster_class = getattr(import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise EngineUnavailableError(
            f"cannot import the cluster class {settings.cluster_class} "
            f"(dask.cluster_class): {error}",
            "install its package, or fix the setting",
        ) from error
    cluster_name = settings.cluster_kwargs.get("name")
    if cluster_name is None or not hasattr(cluster_class, "from_name"):
        raise UsageError(
            f"each run starts its own {settings.cluster_class}, which ends with it",
            "set dask.cluster_kwargs.n_workers, or dask.adapt, for the next run",
        )
    kwargs = {
        name: settings.cluster_kwargs[name]
        for name in ("namespace",)
        if name in settings.cluster_kwargs
    }
    with cluster_class.from_name(cluster_name, **kwargs) as cluster:
        before = len(cluster.scheduler_info["workers"])
        cluster.scale(workers)
    return before
