"""Where runs are made: in processes of this machine, or on a cluster through Prefect."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from contextvars import ContextVar, Token
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from pipeline.config.settings import Settings, load_settings
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.config.job import Job
    from pipeline.local.workers import LocalWorkers
    from pipeline.runs.backfill.driver import Listener as BackfillListener
    from pipeline.runs.backfill.records import BackfillResumeOptions
    from pipeline.runs.backfill.store import BackfillStore
    from pipeline.runs.backfill.summary import BackfillSummary
    from pipeline.runs.driver.plan import PreparedRun, ResumeOptions
    from pipeline.runs.driver.run import Listener
    from pipeline.runs.driver.summary import RunSummary


class Local:
    """Worker processes of this machine; use it as a context manager, or `close` it."""

    def __init__(self, settings: Settings) -> None:
        transforms = settings.transforms
        if transforms.allow_by_value is None:
            # Functions stay on this machine, where their user may run anything anyway.
            transforms = transforms.model_copy(update={"allow_by_value": True})
        # Processes of this machine need no access to a cluster.
        dask = settings.dask.with_client(None, None)
        self.settings = settings.model_copy(update={"transforms": transforms, "dask": dask})
        self._lock = Lock()
        self._workers: LocalWorkers | None = None
        self._tokens: list[Token[Local | Cluster | None]] = []

    def __enter__(self) -> Self:
        self._tokens.append(_current.set(self))
        _entered.append(self)
        self.workers()  # They are ready when the first run is planned.
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._tokens.pop())
        _entered.remove(self)
        self.close()

    def __repr__(self) -> str:
        count = self.settings.dask.workers
        processes = f"{count} process{'es' * (count > 1)}" if count else "a process per core"
        return f"chunkmap.local(): {processes} on this machine"

    def workers(self) -> LocalWorkers:
        """Return the worker processes; the first is started now, if there is none yet."""
        from pipeline.local.workers import LocalWorkers

        with self._lock:
            if self._workers is None:
                self._workers = LocalWorkers(self.settings)
            return self._workers

    def close(self) -> None:
        """End the worker processes; another run starts new ones."""
        with self._lock:
            workers, self._workers = self._workers, None
        if workers is not None:
            workers.close()

    def run(
        self,
        job: Job,
        settings: Settings,
        listen: Listener,
        resume: ResumeOptions,
        planned: Planned,
    ) -> RunSummary:
        """Run a job."""
        from pipeline.local.launch import run_locally

        return run_locally(job, settings, listen, resume, self.workers(), planned=planned)

    def backfill(
        self,
        store: BackfillStore,
        settings: Settings,
        listen: BackfillListener,
        resume: BackfillResumeOptions,
    ) -> BackfillSummary:
        """Drive a backfill."""
        from pipeline.local.launch import backfill_locally

        return backfill_locally(store, settings, listen, resume, self.workers())


class Planned:
    """Keeps the run that a place has planned."""

    run: PreparedRun | None = None

    def __call__(self, run: PreparedRun) -> None:
        """Keep a run."""
        self.run = run


class Cluster:
    """A Dask cluster, with Prefect."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __repr__(self) -> str:
        dask = self.settings.dask
        where = dask.scheduler or dask.cluster_class or "a Dask cluster of its own per run"
        return f"chunkmap.connect(): {where}, Prefect at {self.settings.prefect.api_url}"

    def run(
        self,
        job: Job,
        settings: Settings,
        listen: Listener,
        resume: ResumeOptions,
        planned: Planned,
    ) -> RunSummary:
        """Run a job as a flow run."""
        from pipeline.flows.launch import launch, prepare
        from pipeline.runs.driver.preflight import preflight
        from pipeline.storage import open_storage

        preflight(job, settings, open_storage(settings))
        listen("plan", None)
        early = prepare(job, settings, resume)
        if early.run is not None:
            planned(early.run)
        return launch(job, settings, listen, resume, early=early)

    def backfill(
        self,
        store: BackfillStore,
        settings: Settings,
        listen: BackfillListener,
        resume: BackfillResumeOptions,
    ) -> BackfillSummary:
        """Drive a backfill as a flow run."""
        from pipeline.flows.launch import launch_backfill

        return launch_backfill(store, settings, listen, resume)


_current: ContextVar[Local | Cluster | None] = ContextVar("place", default=None)
_entered: list[Local] = []
"""Blocks of `local` that are open in this process, for threads that they do not reach."""
_connected: list[Local | Cluster] = []
"""What `connect` has chosen for this process, or what was found without it."""
_lock = Lock()


def local(workers: int | None = None, *, environment: str | None = None, **settings: Any) -> Local:
    """Run jobs in worker processes of this machine: no Prefect server, no Dask, no S3 needed.

    Inputs and outputs are folders (`data/orders/`, `file:///data/orders/`) or in S3. Functions of
    notebooks and closures may be used.

        with cm.local():
            job.run()

    Args:
        workers: The number of processes; default one per core.
        environment: Also read conf/<environment>.yaml.
        settings: Further settings by their sections, e.g. `dask={"memory_per_worker": "4GiB"}`.

    Returns:
        A context manager, which ends the processes.
    """
    changes: dict[str, Any] = {**settings}
    if workers is not None:
        changes["dask"] = {**changes.get("dask", {}), "workers": workers}
    return Local(load_settings(environment, changes))


def connect(
    target: Any = None, *, environment: str | None = None, **settings: Any
) -> Local | Cluster:
    """Choose where the runs of this process are made, until the next call.

    Args:
        target: Address of a Dask scheduler (`tls://…`), a `dask.distributed.Client` that you have,
            or `"local"`. Default: the cluster of the settings or of `chunkmap up`, else this
            machine. Workers of a cluster need chunkmap in the same version, and their own settings.
        environment: Also read conf/<environment>.yaml.
        settings: Further settings by their sections, e.g. `prefect={"api_url": "http://…"}`.

    Returns:
        The place, as `local` returns it, or the cluster.

    Raises:
        UsageError: The target is none of these, or a client that is closed or asynchronous.
        VersionMismatchError: The client's workers lack chunkmap, or have other packages.
        SettingsError: A setting is unknown or mistyped.
    """
    changes: dict[str, Any] = {**settings}
    place: Local | Cluster
    if target == "local":
        place = Local(load_settings(environment, changes))
    elif target is None:
        place = _default(load_settings(environment, changes))
    elif isinstance(target, str):
        changes["dask"] = {**changes.get("dask", {}), "scheduler": target}
        place = Cluster(load_settings(environment, changes))
    else:
        place = Cluster(_with_client(load_settings(environment, changes), target))
    with _lock:
        before, _connected[:] = list(_connected), [place]
    for other in before:
        if isinstance(other, Local):
            other.close()
    return place


def _with_client(settings: Settings, client: Any) -> Settings:
    """Return settings for the cluster of a Dask client; a run makes a client of its own there."""
    status, scheduler = getattr(client, "status", None), getattr(client, "scheduler", None)
    if not isinstance(status, str) or not hasattr(client, "scheduler_info"):
        raise UsageError(
            f"a {type(client).__name__} is neither an address nor a Dask client",
            hint='pass e.g. "tls://scheduler:8786", a dask.distributed.Client, or "local"',
        )
    if status != "running" or scheduler is None:
        raise UsageError(
            f"the Dask client is not connected: it is {status}",
            hint="make a new one: dask.distributed.Client(…)",
        )
    if client.asynchronous:
        raise UsageError(
            "the Dask client is asynchronous",
            hint="pass the address of its scheduler: connect(client.scheduler.address)",
        )
    from pipeline.cluster.versions import refuse_other_versions

    refuse_other_versions(client)
    dask = settings.dask.with_client(scheduler.address, client.security)
    return settings.model_copy(update={"dask": dask})


def current() -> Local | Cluster:
    """Return where runs are made now: the block of `local`, else what `connect` chose."""
    place = _current.get()
    if place is not None:
        return place
    if _entered:
        return _entered[-1]
    with _lock:
        if not _connected:
            _connected.append(_default(load_settings()))
        return _connected[-1]


def _default(settings: Settings) -> Local | Cluster:
    dask = settings.dask
    has_cluster = settings.prefect.api_url or dask.scheduler or dask.cluster_class
    return Cluster(settings) if has_cluster else Local(settings)


def settings_with(functions: Mapping[str, Any]) -> Settings:
    """Return the settings of the current place, with functions that are sent by value."""
    settings = current().settings
    if not functions:
        return settings
    transforms = settings.transforms.with_functions(functions)
    return settings.model_copy(update={"transforms": transforms})


@atexit.register
def _close() -> None:
    for place in _connected:
        if isinstance(place, Local):
            place.close()
