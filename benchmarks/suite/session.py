"""One session: choose workloads and subjects, measure, and keep the record after each step."""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks.suite import pytest_storage
from benchmarks.suite.datasets import Card, Scale, ensure
from benchmarks.suite.environments import PEERS, REFERENCE, PeerMissingError, environment_of
from benchmarks.suite.expected import expect
from benchmarks.suite.machine import cores, describe
from benchmarks.suite.measure import (
    Conditions,
    Contender,
    measure,
    measure_noise,
    remove,
    spec_of,
)
from benchmarks.suite.profiling import find_program, profile
from benchmarks.suite.record import Record, load_record, records_in, with_results
from benchmarks.suite.settings import TRANSFORMS
from benchmarks.suite.subjects import ProcessSubject
from benchmarks.suite.workloads import WORKLOADS, Workload, needs
from pipeline.cluster import local
from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from pipeline.private import state_folder
from pipeline.storage import Storage, open_storage

DEFAULT_ROOT = "s3://demo/bench/"
DEFAULT_ENVIRONMENT = "local"
BASELINE_PEERS = ("polars",)
"""Peers of the other workloads, unless the full matrix is requested."""
NOISE_WORKLOAD = "row-map"
MAX_ATTEMPTS = 5
"""A/A runs of a session that waits for a quiet machine."""
_LISTED = "list sessions with: chunkmap bench history"
PROFILES = "profiles"
"""Folder of the flame graphs, below that of the report."""

Echo = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure.

    Attributes:
        names: Workloads or suites (`main`, `rest`, `ci`, `all`); none means all.
        scale: Of the datasets.
        against: Peers; None means what the suite says.
        repeat: Processes of each subject on each workload, interleaved.
        iterations: Times that each does the work: the first is cold, the others are warm. None
            means what the workload says.
        full: Every peer on every workload.
        count: Whether requests are counted, in a pass of their own: those of `main` and of
            workloads that say so, or all with `full`.
        root: URI under which all benchmark data lives.
        resume: Id of a session to resume, or its first letters; nothing else is requested then.
        profile: Whether flame graphs are made of chunkmap on each workload.
        max_noise: Noise floor to wait for: the A/A run is repeated until it is no higher, a few
            times at most. None takes the first.
    """

    names: tuple[str, ...] = ()
    scale: Scale = "s"
    against: tuple[str, ...] | None = None
    repeat: int = 1
    iterations: int | None = None
    full: bool = False
    count: bool = True
    root: str = DEFAULT_ROOT
    resume: str | None = None
    profile: bool = False
    max_noise: float | None = None

    def command(self) -> str:
        """The command that asks for this."""
        words = ["chunkmap", "bench", "run", *self.names, "--scale", self.scale]
        words += [word for peer in self.against or () for word in ("--against", peer)]
        words += ["--repeat", str(self.repeat)] * (self.repeat != 1)
        words += ["--iterations", str(self.iterations)] * (self.iterations is not None)
        words += ["--full"] * self.full + ["--no-count"] * (not self.count)
        words += ["--profile"] * self.profile
        if self.max_noise is not None:
            words += ["--max-noise", f"{self.max_noise:g}"]
        words += ["--root", self.root] * (self.root != DEFAULT_ROOT)
        return shlex.join(words)


def chosen(names: Sequence[str]) -> list[Workload]:
    """The workloads that names of workloads and suites mean, in the order of the suite.

    Raises:
        UsageError: there is no such workload or suite.
    """
    known = {name for workload in WORKLOADS.values() for name in workload.suites}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(
            f"no workload or suite {unknown[0]!r}", hint=f"there are {', '.join(sorted(known))}"
        )
    wanted = set(names or ("all",))
    return [workload for workload in WORKLOADS.values() if wanted & workload.suites]


def noise_workload(workloads: Sequence[Workload]) -> Workload:
    """Which workload the A/A run measures: the usual one, or the first that Polars does too.

    Where Polars does none of them, it is the fixed cost of a run, which needs no large dataset.
    """
    usual = WORKLOADS[NOISE_WORKLOAD]
    fit = [
        workload
        for workload in workloads
        if workload.is_checked and BASELINE_PEERS[0] in workload.peers
    ]
    if usual in workloads:
        return usual
    return fit[0] if fit else WORKLOADS["fixed"]


def peers_of(workload: Workload, request: Request) -> list[str]:
    """Whom a workload is measured against.

    Raises:
        UsageError: there is no such peer.
    """
    unknown = [name for name in request.against or () if name not in PEERS]
    if unknown:
        raise UsageError(
            f"no peer {unknown[0]!r}",
            hint=f"there are {', '.join(name for name in PEERS if name != REFERENCE)}",
        )
    if request.against is not None:
        return [name for name in workload.peers if name in request.against]
    if request.full or workload.suite == "main":
        return list(workload.peers)
    aimed_at = {name for aim in workload.aims if request.scale in aim.scales for name in aim.peers}
    return [name for name in workload.peers if name in BASELINE_PEERS or name in aimed_at]


def is_counted(workload: Workload, request: Request) -> bool:
    """Whether a workload's requests are counted."""
    return request.count and (request.full or workload.suite == "main" or workload.counted)


def report_folder(settings: Settings, session: str, *parts: str) -> Path:
    """The folder of a session's report on this machine, or a folder inside."""
    return state_folder(settings.state_dir, "bench", "reports", session, *parts)


def records_folder(settings: Settings) -> Path:
    """Where records are kept on this machine."""
    return settings.state_dir / "bench" / "records"


def find_record(settings: Settings, name: str | None) -> Record:
    """Find a record by its file, or its id's first letters; without a name, the newest.

    Raises:
        UsageError: No record matches, or several do.
    """
    if name is not None and Path(name).is_file():
        return load_record(Path(name))
    folder = records_folder(settings)
    records = records_in(folder)
    matches = [record for record in records if record.id.startswith(name or "")]
    if not matches:
        raise UsageError(
            f"no session {name or ''} in {folder}".replace("  ", " "),
            hint=_LISTED if records else "run one with: chunkmap bench run",
        )
    if name is not None and len(matches) > 1:
        raise UsageError(f"{name} may be {', '.join(record.id for record in matches)}", _LISTED)
    return matches[-1]


@dataclass(slots=True)
class Session:
    """Measures what was requested; the record is stored as soon as a subject is measured.

    A session that is resumed does not count requests of what was measured before.
    """

    settings: Settings
    request: Request
    echo: Echo = lambda line: None
    record: Record = field(init=False)
    storage: Storage = field(init=False)
    _contenders: dict[str, Contender] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if TRANSFORMS not in self.settings.transforms.allow:
            raise UsageError(
                f"the settings do not allow the workloads' transforms ({TRANSFORMS})",
                hint="load them with benchmarks.suite.settings.suite_settings",
            )
        if self.request.profile:
            find_program()
        self.storage = open_storage(self.settings)
        self.record = self._begun()

    @property
    def path(self) -> Path:
        """The record's file."""
        return records_folder(self.settings) / f"{self.record.id}.json"

    def run(self) -> Record:
        """Measure everything that the record does not hold yet."""
        workloads = chosen(self.request.names)
        cards = self._datasets(workloads)
        if self.record.noise is None:
            self._measure_noise(noise_workload(workloads), cards)
        for workload in workloads:
            self._measure(workload, cards[workload.dataset])
            if self.request.profile:
                self._profile(workload, cards[workload.dataset])
        self._keep(self.record.model_copy(update={"complete": True}))
        pytest_storage.save(self.record, Path(".benchmarks"))
        return self.record

    def _begun(self) -> Record:
        resume = self.request.resume
        if resume is not None:
            if self.request != Request(resume=resume):
                raise UsageError(
                    "--resume continues a session as it began", hint="drop the other options"
                )
            record = find_record(self.settings, resume)
            before = {**record.request, "repeat": record.repeat or 1, "resume": record.id}
            self.request = Request(**before)
            return record
        now = datetime.now(UTC)
        return Record(
            id=f"{now:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}",
            created=now,
            scale=self.request.scale,
            repeat=self.request.repeat,
            iterations=self.request.iterations,
            command=self.request.command(),
            request=asdict(self.request),
            machine=describe(self._threads()),
        )

    def _threads(self) -> int:
        dask = self.settings.dask
        threads = dask.threads_per_worker or 1
        return (dask.workers or max(1, cores() // threads)) * threads

    def _datasets(self, workloads: Sequence[Workload]) -> dict[str, Card]:
        names = dict.fromkeys(name for workload in workloads for name in needs(workload))
        names.setdefault(noise_workload(workloads).dataset)
        root, scale = self.request.root, self.request.scale
        cards = {name: ensure(self.storage, root, name, scale, self.echo) for name in names}
        self._keep(self.record.model_copy(update={"datasets": tuple(cards.values())}))
        return cards

    def _measure_noise(self, workload: Workload, cards: dict[str, Card]) -> None:
        card = cards[workload.dataset]
        self.echo("A/A: the same thing twice, to know the noise of this machine")
        # The peer counts only where something is compared with it.
        compared = workload in chosen(self.request.names)
        names = (REFERENCE, *BASELINE_PEERS) if compared else (REFERENCE,)
        expected = expect(self.storage, self.request.root, workload, card)
        limit = self.request.max_noise
        for attempt in range(1, MAX_ATTEMPTS + 1):
            noise = measure_noise(
                self.storage,
                self._conditions(workload),
                workload,
                card,
                [self._contender(name) for name in names],
                expected=expected,
                echo=self.echo,
            ).model_copy(update={"attempts": attempt})
            self.echo(f"A/A: differences below {noise.floor:.1%} are none")
            if limit is None or noise.floor <= limit:
                break
            self.echo(f"A/A: more than {limit:.0%}, attempt {attempt} of {MAX_ATTEMPTS}")
        self._keep(self.record.model_copy(update={"noise": noise}))

    def _measure(self, workload: Workload, card: Card) -> None:
        names = [REFERENCE, *peers_of(workload, self.request)]
        contenders = [self._contender(name) for name in names]
        for workers, tasks in variants(workload, self.request.scale):
            done = {result.key for result in self.record.results}
            left = [
                contender
                for contender in contenders
                if not _is_done(done, workload, contender, workers, tasks)
            ]
            if not left:
                continue
            expected = None
            if workload.is_checked:
                expected = expect(self.storage, self.request.root, workload, card, tasks)
            found = measure(
                self.storage,
                self._conditions(workload),
                workload,
                card,
                left,
                expected=expected,
                echo=self.echo,
                workers=workers,
                tasks=tasks,
                keep=lambda result: self._keep(with_results(self.record, [result])),
            )
            self._keep(with_results(self.record, found))

    def _profile(self, workload: Workload, card: Card) -> None:
        """Make flame graphs of chunkmap, driver and services, in a pass that is not timed."""
        workers, tasks = variants(workload, self.request.scale)[-1]
        subject = self._contender(REFERENCE).subject
        folder = report_folder(self.settings, self.record.id, PROFILES)
        if workers or list(folder.glob(f"{workload.name}-*.svg")):
            return  # On clusters of its own, or done before the session was resumed.
        assert isinstance(subject, ProcessSubject)
        conditions = self._conditions(workload)
        output = conditions.output(workload.name, REFERENCE, "profiled")
        spec = spec_of(
            conditions, workload, card, output, iterations=1, workers=workers, tasks=tasks
        )
        self.echo(f"{workload.name}: chunkmap again, for its flame graphs")
        variables = self._contender(REFERENCE).variables
        try:
            profile(
                subject,
                spec,
                variables,
                services=self._services(),
                folder=folder,
                echo=self.echo,
            )
        except RuntimeError as error:
            self.echo(f"{workload.name}: no profile: {error}")
        finally:
            remove(self.storage, conditions.output(workload.name))

    def _services(self) -> dict[str, int]:
        """Local services that work for chunkmap: name for the profile, and process id."""
        names = {"dask": "workers", "prefect": "prefect"}
        return {
            names[service.name]: service.pid
            for service in local.status(self.settings)
            if service.name in names and service.pid is not None
        }

    def _conditions(self, workload: Workload) -> Conditions:
        return Conditions(
            root=self.request.root,
            session=self.record.id,
            scale=self.request.scale,
            repeat=self.request.repeat,
            iterations=self.request.iterations,
            endpoint=self._endpoint() if is_counted(workload, self.request) else None,
            reclaim=partial(local.reclaim_space, self.settings),
        )

    def _endpoint(self) -> str | None:
        endpoint = self.settings.s3.endpoint_url
        # The proxy that counts speaks no TLS.
        return endpoint if endpoint is not None and endpoint.startswith("http://") else None

    def _contender(self, name: str) -> Contender:
        if name not in self._contenders:
            self._contenders[name] = contender(name, self.settings, self.echo)
        return self._contenders[name]

    def _keep(self, record: Record) -> None:
        self.record = record
        state_folder(self.settings.state_dir, "bench", "records")
        partial = self.path.with_suffix(".partial")
        partial.write_text(record.model_dump_json(indent=1), encoding="utf-8")
        partial.replace(self.path)


def contender(name: str, settings: Settings, echo: Echo) -> Contender:
    """A peer that is ready to be measured, or the reason why it cannot be."""
    peer = PEERS[name]
    try:
        environment = environment_of(peer, settings.state_dir, echo)
    except PeerMissingError as error:
        return Contender(name, peer.title, None, str(error))
    pids = [
        service.pid
        for service in local.status(settings)
        if service.name in peer.services and service.pid is not None
    ]
    # chunkmap finds its settings, and the stack, from the present folder.
    folder = Path.cwd() if peer.lock is None else None
    variables = settings.s3.environment()
    if settings.s3.endpoint_url:
        variables["AWS_ENDPOINT_URL"] = settings.s3.endpoint_url
    variables |= settings.prefect.environment()
    if peer.lock is None and settings.environment != DEFAULT_ENVIRONMENT:
        variables["CHUNKMAP_ENVIRONMENT"] = settings.environment
    subject = ProcessSubject(name, environment, tuple(pids), folder)
    return Contender(name, peer.title, subject, variables=variables)


def variants(workload: Workload, scale: Scale) -> list[tuple[int, int]]:
    """(workers, tasks) of each point of a workload's curve; a plain workload has one."""
    if workload.workers:
        return [(workers, workers * workload.tasks_per_worker) for workers in workload.workers]
    return [(0, tasks) for tasks in workload.sizes.get(scale, (0,))]


def _is_done(
    done: set[tuple[str, str, int, int]],
    workload: Workload,
    contender: Contender,
    workers: int,
    tasks: int,
) -> bool:
    most = workload.limits.get(contender.name, tasks)
    return (workload.name, contender.name, workers, min(tasks, most)) in done
