"""The only door to Dask."""

from pipeline.engine.asking import Cluster, WorkerView, cluster_of, refuse_other_versions
from pipeline.engine.local import start_local_cluster
from pipeline.engine.profile import ALLOWED_FAILURES, PRELOAD
from pipeline.engine.runner import (
    announce,
    check_scheduler,
    check_versions,
    cluster_mapper,
    connection_errors,
    fate,
    is_leaving,
    listen,
    pickled,
    prioritised,
    sharing,
    submit,
    task_runner,
    thread_count,
    wait_any,
    worker_name,
)

__all__ = [
    "ALLOWED_FAILURES",
    "PRELOAD",
    "Cluster",
    "WorkerView",
    "announce",
    "check_scheduler",
    "check_versions",
    "cluster_mapper",
    "cluster_of",
    "connection_errors",
    "fate",
    "is_leaving",
    "listen",
    "pickled",
    "prioritised",
    "refuse_other_versions",
    "sharing",
    "start_local_cluster",
    "submit",
    "task_runner",
    "thread_count",
    "wait_any",
    "worker_name",
]
