"""Measures workloads: interleaved repeats, results checked before times count, traffic apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers.protocol import Spec
from benchmarks.suite.checking import NOT_LISTED, Checker, Written, written
from benchmarks.suite.datasets import Card, Scale
from benchmarks.suite.environments import REFERENCE
from benchmarks.suite.expected import Expected
from benchmarks.suite.machine import cores, load
from benchmarks.suite.proxy import CountingProxy
from benchmarks.suite.record import Iteration, Noise, Process, Result, Traffic
from benchmarks.suite.stats import noise_floor
from benchmarks.suite.subjects import Answer, Subject
from benchmarks.suite.workloads import Workload, bound_params
from pipeline.errors import RunFailedError
from pipeline.storage import Storage

Echo = Callable[[str], None]
LARGE_BYTES = 256 << 20
"""Bytes of a removed output above which their disk space is returned at once."""
_PLAIN = ("work_seconds", "rows", "output", "cpu_seconds")


@dataclass(frozen=True, slots=True)
class Contender:
    """Who is measured, or why not.

    Attributes:
        name: Of the subject.
        title: For people.
        subject: What runs it; None if it cannot be run here.
        missing: Why not.
        variables: Environment of its processes.
    """

    name: str
    title: str
    subject: Subject | None
    missing: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conditions:
    """How often, where, and from what.

    Attributes:
        root: URI under which benchmark data lives.
        session: Id of the session: outputs go below it and are removed once they are checked.
        scale: Of the datasets.
        repeat: Processes of each subject.
        iterations: Times that each of them does the work; None: what the workload says.
        endpoint: The S3 endpoint, for the counting pass; None counts nothing.
        reclaim: Returns the disk space of removed outputs to the system.
    """

    root: str
    session: str
    scale: Scale
    repeat: int = 1
    iterations: int | None = None
    endpoint: str | None = None
    reclaim: Callable[[], None] = lambda: None

    def output(self, *names: str) -> str:
        """A prefix for one process to write under."""
        return "/".join([self.root.rstrip("/"), "out", self.session, *names]) + "/"


@dataclass(slots=True)
class _Tally:
    """What has been seen of one contender."""

    processes: list[Process] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=dict)
    codecs: tuple[str, ...] = ()
    error: str = ""
    wrong: bool = False


def measure(
    storage: Storage,
    conditions: Conditions,
    workload: Workload,
    card: Card,
    contenders: Sequence[Contender],
    *,
    expected: Expected | None = None,
    echo: Echo = lambda line: None,
    workers: int = 0,
    tasks: int = 0,
    keep: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Measure contenders on one workload; each gets a result, whatever becomes of it.

    Args:
        storage: To check what was written, and to remove it.
        conditions: How often and where.
        workload: What is done.
        card: Of its dataset.
        contenders: Who does it; in each round in another order.
        expected: What must come out; None where nothing is written.
        echo: Told what goes on.
        workers: Worker threads of a cluster of chunkmap's own; 0 for the one that runs.
        tasks: How many tasks, where their cost is measured; a peer may have a limit.
        keep: Called with the result of each contender once it is timed, without its requests.
    """
    tallies = {contender.name: _Tally() for contender in contenders}
    alive = [contender for contender in contenders if contender.subject is not None]
    order = random.Random(conditions.session + workload.name)
    checker = None if expected is None else Checker(storage, expected)
    counts = {
        contender.name: min(tasks, workload.limits.get(contender.name, tasks))
        for contender in contenders
    }

    def ask(contender: Contender, mark: str, iterations: int, own: int, **extra: str) -> Answer:
        assert contender.subject is not None
        output = conditions.output(workload.name, contender.name, mark)
        spec = spec_of(
            conditions,
            workload,
            card,
            output,
            iterations=iterations,
            workers=own,
            tasks=counts[contender.name],
        )
        return contender.subject.run(spec, {**contender.variables, **extra})

    # Of a session that was interrupted here: to chunkmap it would be a run that is done already.
    remove(storage, conditions.output(workload.name))
    iterations = conditions.iterations or workload.iterations
    for number in range(conditions.repeat):
        for worker in order.sample(alive, len(alive)):
            tally = tallies[worker.name]
            if tally.error:
                continue  # it was wrong or failed: its time would count for nothing
            before = load()
            answer = ask(worker, f"{workers}-{number}", iterations, workers)
            outputs = [
                NOT_LISTED if checker is None else written(storage, iteration["output"])
                for iteration in answer.iterations
            ]
            _note(tally, answer, number, before, outputs)
            if checker is not None and not tally.error:
                tally.error = checker.problem(answer.iterations)
                tally.wrong = tally.error != ""
            if remove(storage, conditions.output(workload.name, worker.name)) > LARGE_BYTES:
                conditions.reclaim()
            echo(_line(workload, worker, tally))
            if number == conditions.repeat - 1:
                task_count = counts[worker.name]
                keep(
                    _result(
                        workload, worker, tally, traffic=None, workers=workers, tasks=task_count
                    )
                )

    traffic = {}
    if conditions.endpoint is not None and not workers:
        for contender in alive:
            if not tallies[contender.name].error and _uses_storage(workload, contender):
                traffic[contender.name] = _count(conditions, contender, ask)
                remove(storage, conditions.output(workload.name, contender.name))
    return [
        _result(
            workload,
            contender,
            tallies[contender.name],
            traffic=traffic.get(contender.name),
            workers=workers,
            tasks=counts[contender.name],
        )
        for contender in contenders
    ]


def measure_noise(
    storage: Storage,
    conditions: Conditions,
    workload: Workload,
    card: Card,
    contenders: Sequence[Contender],
    *,
    expected: Expected | None = None,
    echo: Echo = lambda line: None,
) -> Noise:
    """The A/A run: each contender twice, under two names, interleaved like any others.

    Raises:
        RunFailedError: a contender failed, so that there is no floor.
    """
    twins = [
        Contender(
            f"{contender.name}-{side}",
            contender.title,
            contender.subject,
            contender.missing,
            contender.variables,
        )
        for contender in contenders
        for side in ("a", "b")
    ]
    quiet = Conditions(
        conditions.root,
        conditions.session,
        conditions.scale,
        conditions.repeat,
        conditions.iterations,
        reclaim=conditions.reclaim,
    )
    found = measure(storage, quiet, workload, card, twins, expected=expected, echo=echo)
    bad = next((result for result in found if result.state != "ok"), None)
    if bad is not None:
        raise RunFailedError(
            f"the A/A run failed: {bad.subject}: {bad.error}",
            hint="if a stack is up, stop it (chunkmap down): its workers may not allow "
            "benchmarks.transforms",
        )
    samples = {result.subject: tuple(result.samples()) for result in found}
    pairs = {
        contender.name: (samples[f"{contender.name}-a"], samples[f"{contender.name}-b"])
        for contender in contenders
    }
    return Noise(workload=workload.name, pairs=pairs, floor=noise_floor(list(pairs.values())))


def remove(storage: Storage, prefix: str) -> int:
    """Remove everything below a prefix; return its bytes."""
    found = list(storage.objects(prefix))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda info: storage.delete(info.uri), found))
    return sum(info.size for info in found)


def spec_of(
    conditions: Conditions,
    workload: Workload,
    card: Card,
    output: str,
    *,
    iterations: int,
    workers: int,
    tasks: int,
) -> Spec:
    """What one process of a subject is given.

    Args:
        conditions: Where data lives, and its scale.
        workload: What is done.
        card: Of its dataset.
        output: Prefix to write under.
        iterations: Times that the work is done.
        workers: Worker threads of a cluster of chunkmap's own; 0 for the one that runs.
        tasks: How many tasks, where their cost is measured.
    """
    params = bound_params(workload, conditions.root, conditions.scale)
    job: dict[str, Any] = {
        "name": f"bench-{workload.name}",
        "input": {"uri": card.uri},
        "chunks": dict(workload.chunks),
        "transform": f"benchmarks.transforms:{workload.own_transform or workload.transform}",
        "params": params,
        "output": {"uri": output, "compression": "zstd", **workload.output},
    }
    if workload.rows_per_task and workload.kind != "backfill":  # whose windows are selected
        job["input"]["filter"] = [["id", "<", tasks * workload.rows_per_task]]
    if workload.kind == "backfill":
        job["window"] = {"column": workload.keys[0], "grain": "day"}
        job["output"]["mode"] = "overwrite-partitions"
    if workload.reduce:
        named = workload.reduce.items()
        job["reduce"] = {key: f"benchmarks.transforms:{name}" for key, name in named}
    return Spec(
        workload=workload.name,
        input=card.uri,
        output=output,
        transform=workload.transform,
        params=params,
        cores=cores(),
        iterations=iterations,
        tasks=tasks,
        job=job,
        workers=workers,
        finalize=workload.reduce.get("finalize", ""),
        keys=workload.keys,
    )


def _note(
    tally: _Tally, answer: Answer, number: int, before: float, outputs: Sequence[Written]
) -> None:
    tally.versions = answer.versions or tally.versions
    tally.codecs = outputs[-1].codecs if outputs else tally.codecs
    tally.error = answer.error
    if not answer.error and not answer.iterations:
        tally.error = "it reported no iteration"
    if answer.startup_seconds is None or not answer.iterations:
        return
    tally.processes.append(
        Process(
            round=number,
            startup_seconds=answer.startup_seconds,
            peak_bytes=answer.peak_bytes,
            cpu_seconds=answer.cpu_seconds,
            load=before,
            iterations=tuple(
                Iteration(
                    work_seconds=iteration["work_seconds"],
                    rows=iteration.get("rows"),
                    cpu_seconds=iteration.get("cpu_seconds"),
                    files=output.files,
                    bytes=output.bytes,
                    figures={name: iteration[name] for name in iteration if name not in _PLAIN},
                )
                for iteration, output in zip(answer.iterations, outputs, strict=True)
            ),
        )
    )


def _uses_storage(workload: Workload, contender: Contender) -> bool:
    # A peer's tasks that do nothing, and that record nothing, ask nothing of S3.
    return workload.kind != "tasks" or contender.name == REFERENCE


def _count(
    conditions: Conditions, contender: Contender, ask: Callable[..., Answer]
) -> Traffic | None:
    assert conditions.endpoint is not None
    with CountingProxy(conditions.endpoint) as proxy:
        # A cluster that runs keeps the endpoint it was started with: chunkmap gets its own.
        own = cores() if contender.name == REFERENCE else 0
        where = {"AWS_ENDPOINT_URL_S3": proxy.endpoint, "AWS_ENDPOINT_URL": proxy.endpoint}
        answer = ask(contender, "counted", 1, own, **where)
        return None if answer.error else proxy.traffic()


def _result(
    workload: Workload,
    contender: Contender,
    tally: _Tally,
    *,
    traffic: Traffic | None,
    workers: int,
    tasks: int,
) -> Result:
    failed = "wrong" if tally.wrong else "failed"
    return Result(
        workload=workload.name,
        subject=contender.name,
        title=contender.title,
        workers=workers,
        tasks=tasks,
        state="missing" if contender.subject is None else failed if tally.error else "ok",
        error=contender.missing or tally.error,
        versions=dict(tally.versions),
        processes=tuple(tally.processes),
        codecs=tally.codecs,
        traffic=traffic,
    )


def _line(workload: Workload, contender: Contender, tally: _Tally) -> str:
    if tally.error:
        return f"{workload.name}: {contender.title}: {tally.error[:300]}"
    last = tally.processes[-1]
    times = ", ".join(f"{each.work_seconds:.2f} s" for each in last.iterations)
    return (
        f"{workload.name}: {contender.title}: {times} (start-up {last.startup_seconds:.1f} s, "
        f"{last.peak_bytes / 1e6:,.0f} MB, load {last.load:g})"
    )
