"""Diagnose a cluster: each check exercises what a run needs and suggests a fix."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from pipeline.cluster.certificates import WARN_DAYS
from pipeline.cluster.client import ClusterClient, cluster_of
from pipeline.cluster.process_info import ProcessInfo, about, versions
from pipeline.cluster.versions import few
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import AccessDeniedError, ChunkmapError
from pipeline.flows.finding import Finding, Level
from pipeline.flows.secret_settings import held_secrets
from pipeline.flows.server import connect
from pipeline.flows.server_doctor import examine_server
from pipeline.flows.worker_code import find_mismatches
from pipeline.masking import mask_text
from pipeline.runs.transforms.loading import module_exists
from pipeline.runs.worker.code_report import ALLOW_HINT, missing_modules, report_code
from pipeline.runs.worker.run_settings import sent_settings
from pipeline.storage import (
    StagedObject,
    Storage,
    find_condition_problem,
    join,
    open_storage,
    own_storage,
    parse,
    state_prefix,
)

ASK_SECONDS = 20.0
"""Maximum seconds of a check on a worker; a busy worker takes longer than an idle one."""
SKEW_WARNING, SKEW_ERROR = 2.0, 60.0
"""Seconds of clock skew to report. S3 refuses clients that are 15 minutes off; times in reports are
wrong with less."""
MIN_OPEN_FILES = 4096
"""Open files that a worker with many requests in flight may need."""
MIN_MEMORY = 1_000_000_000
"""Bytes below which a worker has little memory left after its imports."""
DAY = 86_400.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def examine(settings: Settings, output: str | None, job: Job | None = None) -> Iterator[Finding]:
    """Check everything that a run needs, one thing after the other.

    Args:
        settings: The settings of the driver.
        output: The output next to which rights on S3 are tested; None skips these tests.
        job: A job whose code every worker is to load; None: only the allow-lists are compared.
    """
    for finding in _findings(settings, output, job):
        yield replace(finding, said=mask_text(finding.said), fix=mask_text(finding.fix))


def _findings(settings: Settings, output: str | None, job: Job | None) -> Iterator[Finding]:
    reached = _check("Prefect", lambda: f"answers at {connect(settings.prefect)}")
    yield reached
    if reached.level == "ok" and settings.prefect.api_url is not None:
        yield from examine_server(settings.prefect.api_url, settings.batches.concurrency_limit)
    try:
        with cluster_of(settings.dask) as cluster:
            yield Finding("ok", "Dask", f"the scheduler answers at {cluster.scheduler}")
            yield from _examine(cluster, settings, output)
            yield from _transforms(cluster, settings)
            if job is not None:
                yield from _code(cluster, settings, job)
    except ChunkmapError as error:
        yield Finding("error", "Dask", str(error), error.hint or "")


def _check(what: str, call: Callable[[], str]) -> Finding:
    try:
        return Finding("ok", what, call())
    except ChunkmapError as error:
        return Finding("error", what, str(error), error.hint or "")


def _examine(cluster: ClusterClient, settings: Settings, output: str | None) -> Iterator[Finding]:
    names = {worker.address: worker.name for worker in cluster.workers()}
    if not names:
        fix = (
            "`chunkmap up` restarts those of the local stack; "
            "for other clusters: docs/guides/cluster.md"
        )
        yield Finding("error", "workers", "there are none", fix)
    before = time.time()
    answers = cluster.ask(about_worker, seconds=ASK_SECONDS)
    after = time.time()
    workers: dict[str, ProcessInfo] = {}
    for address, answer in answers.items():
        label = f"worker {names.get(address, address)}"
        if isinstance(answer, ProcessInfo):
            workers[label] = answer
        else:
            yield Finding(
                "error", label, f"does not answer: {answer}", "is chunkmap installed there?"
            )
    scheduler = cluster.ask_scheduler(about)
    processes = dict(workers)
    if isinstance(scheduler, ProcessInfo):
        processes["scheduler"] = scheduler
    else:
        yield Finding("warning", "scheduler", f"runs without chunkmap: {scheduler}")
    yield _versions(processes)
    yield _clocks(processes, before, after)
    yield from _tls(settings, cluster, processes)
    yield from _limits(cluster, workers)
    yield _prefect(workers)
    yield from _rights(cluster, settings, output, names)


def about_worker() -> ProcessInfo:
    """Describe this worker, with Prefect's secrets that it holds."""
    return replace(about(), prefect_secrets=tuple(held_secrets()))


def _versions(processes: Mapping[str, ProcessInfo]) -> Finding:
    ours = versions()
    wrong = [
        f"{name} is {ours[name]} here and {theirs} in {label}"
        for label, info in processes.items()
        for name, theirs in info.versions.items()
        if ours.get(name) != theirs
    ]
    if wrong:
        fix = "give all of them the same image, or the same constraints.txt"
        return Finding("error", "versions", "; ".join(wrong), fix)
    return Finding("ok", "versions", ", ".join(f"{k} {v}" for k, v in ours.items()))


def _clocks(processes: Mapping[str, ProcessInfo], before: float, after: float) -> Finding:
    """Compare clocks: a clock is skewed as far as it is not between the two moments."""
    skews = {
        label: max(before - info.clock, info.clock - after, 0.0)
        for label, info in processes.items()
        if label != "scheduler"
    }
    worst = max(skews, key=lambda label: skews[label], default="")
    skew = skews.get(worst, 0.0)
    if skew <= SKEW_WARNING:
        return Finding("ok", "clocks", f"differ by less than {max(skew, 0.1):.1f} s")
    level: Level = "error" if skew > SKEW_ERROR else "warning"
    return Finding(level, "clocks", f"{worst} is {skew:.0f} s off", "synchronise clocks (NTP)")


def _tls(
    settings: Settings, cluster: ClusterClient, processes: Mapping[str, ProcessInfo]
) -> Iterator[Finding]:
    if not cluster.scheduler.startswith("tls://"):
        yield (
            Finding("ok", "TLS", "none, but the scheduler is reachable from this machine only")
            if _is_local(cluster.scheduler)
            else Finding(
                "error",
                "TLS",
                f"none: everyone who reaches {cluster.scheduler} can run code on the workers",
                "chunkmap tls init, then set dask.tls (SECURITY.md)",
            )
        )
        return
    now = time.time()
    left = {
        f"{label}'s {name}": (end - now) / DAY
        for label, info in {"this command": about(), **processes}.items()
        for name, end in info.expires.items()
    }
    soonest = min(left, key=lambda label: left[label], default="")
    days = left.get(soonest, 0.0)
    fix = "chunkmap tls init --force, then restart workers, scheduler and drivers (SECURITY.md)"
    if not left:
        yield Finding("warning", "TLS", "no process knows when its certificates expire")
    elif days < 0:
        yield Finding("error", "TLS", f"{soonest} certificate has expired", fix)
    elif days < WARN_DAYS:
        yield Finding("warning", "TLS", f"{soonest} certificate expires in {days:.0f} days", fix)
    else:
        yield Finding("ok", "TLS", f"certificates are valid for at least {days:.0f} days")


def _is_local(address: str) -> bool:
    return urlsplit(address).hostname in LOOPBACK


def _limits(cluster: ClusterClient, workers: Mapping[str, ProcessInfo]) -> Iterator[Finding]:
    files = {
        label: info.open_files
        for label, info in workers.items()
        if info.open_files < MIN_OPEN_FILES
    }
    if files:
        worst = min(files, key=lambda label: files[label])
        yield Finding(
            "warning",
            "open files",
            f"{worst} may open {files[worst]:,}; at least {MIN_OPEN_FILES:,} are recommended",
            "raise nofile: `ulimits` in compose, LimitNOFILE in systemd",
        )
    else:
        yield Finding("ok", "open files", f"each worker may open at least {MIN_OPEN_FILES:,}")
    unlimited = [worker.name for worker in cluster.workers() if not worker.memory_limit]
    small = [label for label, info in workers.items() if info.memory < MIN_MEMORY]
    if unlimited:
        yield Finding(
            "warning",
            "memory",
            f"worker {unlimited[0]} has no limit: one large chunk can take the machine down",
            "set dask.memory_per_worker, or give the container a limit",
        )
    elif small:
        fix = "give it at least 2 GB: docs/guides/cluster.md"
        yield Finding("warning", "memory", f"{small[0]} has less than 1 GB", fix)
    else:
        yield Finding("ok", "memory", "each worker has a limit")


def _transforms(cluster: ClusterClient, settings: Settings) -> Iterator[Finding]:
    """Compare the allowed modules that this process finds with those of each worker."""
    what = "transforms"
    here = [name for name in settings.transforms.allow if module_exists(name, settings.transforms)]
    names = {worker.address: worker.name for worker in cluster.workers()}
    answers = cluster.ask(missing_on_worker, sent_settings(settings), seconds=ASK_SECONDS)
    problems: dict[tuple[str, str], list[str]] = {}
    for address, missing in answers.items():
        for name in here if isinstance(missing, dict) else ():
            if name in missing:
                key = (name, str(missing[name]))
                problems.setdefault(key, []).append(names.get(address, address))
    for (name, problem), workers in problems.items():
        fix = ALLOW_HINT if "allow" in problem else "install it there, or set transforms.path there"
        yield Finding("error", what, f"{name}: worker {few(workers)} {problem}", fix)
    if answers and not problems:
        found = f"each worker allows and finds {', '.join(here)}" if here else "none are allowed"
        yield Finding("ok", what, found)


async def missing_on_worker(sent: str) -> dict[str, str]:
    """Describe which allowed modules of the driver a worker refuses or does not find."""
    return await asyncio.to_thread(missing_modules, sent)


def _code(cluster: ClusterClient, settings: Settings, job: Job) -> Iterator[Finding]:
    what = f"job {job.name}"
    ours = report_code(job, settings)
    if ours.problem:
        yield Finding("error", what, ours.problem, ours.hint)
        return
    mismatches = find_mismatches(cluster, job, settings)
    for mismatch in mismatches:
        yield Finding("error", what, str(mismatch), mismatch.hint)
    if not mismatches:
        packages = "".join(f", {name} {version}" for name, version in ours.versions.items())
        yield Finding("ok", what, f"every worker has its code {ours.fingerprint}{packages}")


def _prefect(workers: Mapping[str, ProcessInfo]) -> Finding:
    what = "Prefect's secrets"
    holders = [
        f"{label} holds {', '.join(info.prefect_secrets)}"
        for label, info in workers.items()
        if info.prefect_secrets
    ]
    if holders:
        fix = (
            "remove them from the workers' environment: workers make no request to Prefect, and "
            "the secrets allow running commands where flows run (SECURITY.md)"
        )
        return Finding("warning", what, "; ".join(holders), fix)
    return Finding("ok", what, "no worker holds any")


# -- rights on S3 ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rights:
    """The rights of a process next to an output, as tested."""

    problem: str = ""
    staged: StagedObject | None = None
    """Output that it staged, to be aborted by the caller."""
    may_delete: bool = False


async def try_rights(scratch: str) -> Rights:
    """Do what a batch does, in a scratch folder of the state prefix. Runs in workers.

    Args:
        scratch: The URI of the scratch folder.
    """
    return await asyncio.to_thread(_try_rights, own_storage, scratch)


def _try_rights(open_: Callable[[], Storage], scratch: str) -> Rights:
    action = "open S3"
    staged = None
    note = join(scratch, f"note-{uuid.uuid4().hex}")
    try:
        storage = open_()
        action = "create an object"
        storage.put_new(note, b"written by chunkmap cluster doctor")
        action = "read it back"
        storage.get(note)
        action = "list the folder"
        storage.objects(scratch)
        action = "stage an output (a multipart upload)"
        staged = storage.stage(
            join(scratch, "staged"), memoryview(b"staged"), uuid.uuid4().hex, scratch
        )
    except ChunkmapError as error:
        return Rights(f"cannot {action}: {error}", staged)
    try:
        storage.delete(note)
    except AccessDeniedError:
        return Rights("", staged, may_delete=False)
    except ChunkmapError as error:
        return Rights(f"cannot find out whether it may delete: {error}", staged)
    return Rights("", staged, may_delete=True)


def _rights(
    cluster: ClusterClient, settings: Settings, output: str | None, names: Mapping[str, str]
) -> Iterator[Finding]:
    if output is None:
        yield Finding(
            "warning",
            "S3",
            "not tested, because no output is known on this machine",
            "name one: chunkmap cluster doctor --output s3://bucket/prefix/",
        )
        return
    folder = join(state_prefix(output), "doctor", uuid.uuid4().hex) + "/"
    storage = open_storage(settings)
    own = _try_rights(lambda: storage, folder)
    endpoint = settings.s3.of_bucket(parse(output).bucket).endpoint_url or "Amazon S3"
    where = f"{state_prefix(output)} ({endpoint})"
    rights: dict[str, Any] = cluster.ask(try_rights, folder, seconds=ASK_SECONDS)
    try:
        yield from _rights_findings(own, rights, names, where, endpoint)
        if not own.problem:
            yield _conditions(storage, folder, endpoint)
    finally:
        _remove_scratch(storage, folder, [own, *rights.values()])


def _rights_findings(
    own: Rights, rights: Mapping[str, Any], names: Mapping[str, str], where: str, endpoint: str
) -> Iterator[Finding]:
    fix = "SECURITY.md has example policies for drivers and workers"
    if own.problem:
        yield Finding("error", "S3, from here", f"{own.problem} in {where}", fix)
    elif not own.may_delete:
        yield Finding("error", "S3, from here", f"cannot delete in {where}", fix)
    else:
        yield Finding("ok", "S3, from here", f"has all rights of a driver in {where}")
    problems = {
        names.get(address, address): answer.problem if isinstance(answer, Rights) else str(answer)
        for address, answer in rights.items()
        if not isinstance(answer, Rights) or answer.problem
    }
    for name, problem in problems.items():
        yield Finding("error", f"S3, from worker {name}", problem, fix)
    able = [a for a in rights.values() if isinstance(a, Rights) and not a.problem]
    if able and not problems:
        yield Finding("ok", "S3, from workers", "each may read, write, list and stage")
    if any(worker.may_delete for worker in able) and not _is_local(endpoint):
        yield Finding(
            "warning",
            "S3, from workers",
            "they may delete objects too, which no worker needs",
            "give workers separate keys with fewer rights: SECURITY.md",
        )


def _conditions(storage: Storage, folder: str, endpoint: str) -> Finding:
    what = "S3, conditional writes"
    if not storage.is_conditional(folder):
        result = "not used (s3.conditional_writes: single-writer)"
        return Finding("warning", what, result, "ensure that no two drivers share an output")
    try:
        problem = find_condition_problem(storage, folder)
    except ChunkmapError as error:
        return Finding("error", what, str(error), error.hint or "")
    if problem is None:
        return Finding("ok", what, f"{endpoint} honours If-None-Match and If-Match")
    return Finding(
        "error",
        what,
        f"{endpoint} {problem}: two drivers could publish over each other",
        "use another service, or s3.conditional_writes: single-writer (docs/guides/cluster.md)",
    )


def _remove_scratch(storage: Storage, folder: str, results: list[Any]) -> None:
    staged = [result.staged for result in results if isinstance(result, Rights) and result.staged]
    try:
        storage.abort(staged)
        for info in storage.objects(folder):
            storage.delete(info.uri)
    except ChunkmapError:
        return  # Only a scratch folder of a few bytes stays behind.
