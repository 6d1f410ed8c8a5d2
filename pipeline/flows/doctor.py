"""What ails a cluster: each check really does what a run would do, and says what to mend."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.cluster.certificates import WARN_DAYS
from pipeline.cluster.client import ClusterClient, cluster_of
from pipeline.cluster.process_info import ProcessInfo, about, versions
from pipeline.config.masking import mask_text
from pipeline.config.settings import Settings
from pipeline.errors import AccessDeniedError, ChunkmapError
from pipeline.flows.secret_settings import held_secrets
from pipeline.flows.server import check_server
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

Level = Literal["ok", "warning", "error"]

ASK_SECONDS = 20.0
"""How long a worker may take for a check; one that is at work takes longer than an idle one."""
SKEW_WARNING, SKEW_ERROR = 2.0, 60.0
"""Seconds. S3 refuses requests of clients that are 15 minutes off; times in reports are wrong long
before."""
FILES = 4096
"""Open files that a worker with many requests under way may need."""
MEMORY = 1 << 30
"""Bytes below which a worker has room for its imports and little else."""
DAY = 86_400.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    level: Level
    what: str
    """What was looked at."""
    said: str
    fix: str = ""
    """What to do about it."""


def examine(settings: Settings, output: str | None) -> Iterator[Finding]:
    """Check everything that a run needs, one thing after the other.

    Args:
        settings: Of whoever gives the cluster work.
        output: The output beside which rights on S3 are tried; None leaves that out.
    """
    for finding in _findings(settings, output):
        yield replace(finding, said=mask_text(finding.said), fix=mask_text(finding.fix))


def _findings(settings: Settings, output: str | None) -> Iterator[Finding]:
    yield _tried("Prefect", lambda: f"answers at {check_server(settings.prefect)}")
    try:
        with cluster_of(settings.dask) as cluster:
            yield Finding("ok", "Dask", f"the scheduler answers at {cluster.scheduler}")
            yield from _examine(cluster, settings, output)
    except ChunkmapError as error:
        yield Finding("error", "Dask", str(error), error.hint or "")


def _tried(what: str, call: Callable[[], str]) -> Finding:
    try:
        return Finding("ok", what, call())
    except ChunkmapError as error:
        return Finding("error", what, str(error), error.hint or "")


def _examine(cluster: ClusterClient, settings: Settings, output: str | None) -> Iterator[Finding]:
    names = {one.address: one.name for one in cluster.workers()}
    if not names:
        fix = "`chunkmap up` starts those of the local stack again; of other clusters: "
        yield Finding("error", "workers", "there are none", fix + "docs/cluster.md")
    before = time.time()
    answers = cluster.ask(about_worker, seconds=ASK_SECONDS)
    after = time.time()
    said: dict[str, ProcessInfo] = {}
    for address, answer in answers.items():
        label = f"worker {names.get(address, address)}"
        if isinstance(answer, ProcessInfo):
            said[label] = answer
        else:
            yield Finding(
                "error", label, f"does not answer: {answer}", "is chunkmap installed there?"
            )
    scheduler = cluster.ask_scheduler(about)
    everybody = {**said, **({"scheduler": scheduler} if isinstance(scheduler, ProcessInfo) else {})}
    if not isinstance(scheduler, ProcessInfo):
        yield Finding("warning", "scheduler", f"runs without chunkmap: {scheduler}")
    yield _versions(everybody)
    yield _clocks(everybody, before, after)
    yield from _tls(settings, cluster, everybody)
    yield from _limits(cluster, said)
    yield _prefect(said)
    yield from _rights(cluster, settings, output, names)


def about_worker() -> ProcessInfo:
    """What a worker says of itself."""
    return replace(about(), prefect_secrets=tuple(held_secrets()))


def _versions(everybody: Mapping[str, ProcessInfo]) -> Finding:
    ours = versions()
    wrong = [
        f"{name} is {ours[name]} here and {theirs} in {label}"
        for label, one in everybody.items()
        for name, theirs in one.versions.items()
        if ours.get(name) != theirs
    ]
    if wrong:
        fix = "give all of them the same image, or the same constraints.txt"
        return Finding("error", "versions", "; ".join(wrong), fix)
    return Finding("ok", "versions", ", ".join(f"{k} {v}" for k, v in ours.items()))


def _clocks(everybody: Mapping[str, ProcessInfo], before: float, after: float) -> Finding:
    """Answers were given between two moments of ours; what lies outside is skew."""
    skews = {
        label: max(before - one.clock, one.clock - after, 0.0)
        for label, one in everybody.items()
        if label != "scheduler"
    }
    worst = max(skews, key=lambda label: skews[label], default="")
    skew = skews.get(worst, 0.0)
    said = f"within {max(skew, 0.1):.1f} s of ours"
    if skew <= SKEW_WARNING:
        return Finding("ok", "clocks", said)
    level: Level = "error" if skew > SKEW_ERROR else "warning"
    return Finding(level, "clocks", f"{worst} is {skew:.0f} s off", "synchronise clocks (NTP)")


def _tls(
    settings: Settings, cluster: ClusterClient, everybody: Mapping[str, ProcessInfo]
) -> Iterator[Finding]:
    if not cluster.scheduler.startswith("tls://"):
        local = _is_local(cluster.scheduler)
        yield (
            Finding("ok", "TLS", "none, and the scheduler is on this machine alone")
            if local
            else Finding(
                "error",
                "TLS",
                f"none: whoever reaches {cluster.scheduler} can run code on the workers",
                "chunkmap tls init, then dask.tls: SECURITY.md",
            )
        )
        return
    now = time.time()
    left = {
        f"{label}'s {name}": (end - now) / DAY
        for label, one in {"this command": about(), **everybody}.items()
        for name, end in one.expires.items()
    }
    soonest = min(left, key=lambda label: left[label], default="")
    days = left.get(soonest, 0.0)
    fix = "chunkmap tls init --force, then restart workers, scheduler and drivers (SECURITY.md)"
    if not left:
        yield Finding("warning", "TLS", "nobody says when its certificates expire")
    elif days < 0:
        yield Finding("error", "TLS", f"{soonest} certificate has expired", fix)
    elif days < WARN_DAYS:
        yield Finding("warning", "TLS", f"{soonest} certificate expires in {days:.0f} days", fix)
    else:
        yield Finding("ok", "TLS", f"certificates are valid for {days:.0f} days and more")


def _is_local(address: str) -> bool:
    return urlsplit(address).hostname in LOOPBACK


def _limits(cluster: ClusterClient, said: Mapping[str, ProcessInfo]) -> Iterator[Finding]:
    files = {label: one.open_files for label, one in said.items() if one.open_files < FILES}
    if files:
        worst = min(files, key=lambda label: files[label])
        yield Finding(
            "warning",
            "open files",
            f"{worst} may open {files[worst]:,}; {FILES:,} are better",
            "raise nofile: `ulimits` in compose, LimitNOFILE in systemd",
        )
    else:
        yield Finding("ok", "open files", f"{FILES:,} and more in each worker")
    unlimited = [one.name for one in cluster.workers() if not one.memory_limit]
    small = [label for label, one in said.items() if one.memory < MEMORY]
    if unlimited:
        yield Finding(
            "warning",
            "memory",
            f"worker {unlimited[0]} has no limit: one large chunk takes the machine down",
            "set dask.memory_per_worker, or give the container a limit",
        )
    elif small:
        fix = "give it 2 GiB and more: docs/cluster.md"
        yield Finding("warning", "memory", f"{small[0]} has less than 1 GiB", fix)
    else:
        yield Finding("ok", "memory", "each worker has a limit")


def _prefect(said: Mapping[str, ProcessInfo]) -> Finding:
    what = "Prefect's secrets"
    held = [
        f"{label} holds {', '.join(one.prefect_secrets)}"
        for label, one in said.items()
        if one.prefect_secrets
    ]
    if held:
        fix = (
            "take them out of the workers' environment: workers make no request to Prefect, and "
            "they let their holder run commands where flows run (SECURITY.md)"
        )
        return Finding("warning", what, "; ".join(held), fix)
    return Finding("ok", what, "no worker holds any")


# -- rights on S3 ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rights:
    """What a process could do beside an output."""

    problem: str = ""
    staged: StagedObject | None = None
    """What it staged, for somebody else to abort."""
    may_delete: bool = False


async def try_rights(scratch: str) -> Rights:
    """Do what a batch does, in a scratch folder of the state prefix. Runs in workers.

    Args:
        scratch: Prefix of this process's own.
    """
    return await asyncio.to_thread(_try_rights, own_storage, scratch)


def _try_rights(opened: Callable[[], Storage], scratch: str) -> Rights:
    done = "open S3"
    staged = None
    note = join(scratch, f"note-{uuid.uuid4().hex}")
    try:
        storage = opened()
        done = "create an object"
        storage.put_new(note, b"written by chunkmap cluster doctor")
        done = "read it back"
        storage.get(note)
        done = "list the folder"
        storage.objects(scratch)
        done = "stage an output (a multipart upload)"
        staged = storage.stage(
            join(scratch, "staged"), memoryview(b"staged"), uuid.uuid4().hex, scratch
        )
    except ChunkmapError as error:
        return Rights(f"cannot {done}: {error}", staged)
    try:
        storage.delete(note)
    except AccessDeniedError:
        return Rights("", staged, may_delete=False)
    except ChunkmapError as error:
        return Rights(f"cannot tell whether it may delete: {error}", staged)
    return Rights("", staged, may_delete=True)


def _rights(
    cluster: ClusterClient, settings: Settings, output: str | None, names: Mapping[str, str]
) -> Iterator[Finding]:
    if output is None:
        yield Finding(
            "warning",
            "S3",
            "not tried, because no output is known here",
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
        yield from _judged(own, rights, names, where, endpoint)
        if not own.problem:
            yield _conditions(storage, folder, endpoint)
    finally:
        _clean(storage, folder, [own, *rights.values()])


def _judged(
    own: Rights, rights: Mapping[str, Any], names: Mapping[str, str], where: str, endpoint: str
) -> Iterator[Finding]:
    fix = "SECURITY.md has example policies for drivers and workers"
    if own.problem:
        yield Finding("error", "S3, from here", f"{own.problem} in {where}", fix)
    elif not own.may_delete:
        yield Finding("error", "S3, from here", f"cannot delete in {where}", fix)
    else:
        yield Finding("ok", "S3, from here", f"may all that a driver does in {where}")
    bad = {
        names.get(address, address): said.problem if isinstance(said, Rights) else str(said)
        for address, said in rights.items()
        if not isinstance(said, Rights) or said.problem
    }
    for name, problem in bad.items():
        yield Finding("error", f"S3, from worker {name}", problem, fix)
    able = [said for said in rights.values() if isinstance(said, Rights) and not said.problem]
    if able and not bad:
        yield Finding("ok", "S3, from workers", "each may read, write, list and stage")
    if any(said.may_delete for said in able) and not _is_local(endpoint):
        yield Finding(
            "warning",
            "S3, from workers",
            "they may delete objects too, which no worker needs",
            "give workers keys of their own with narrower rights: SECURITY.md",
        )


def _conditions(storage: Storage, folder: str, endpoint: str) -> Finding:
    what = "S3, conditional writes"
    if not storage.is_conditional(folder):
        said = "not relied on (s3.conditional_writes: single-writer)"
        return Finding("warning", what, said, "see to it that no two drivers share an output")
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
        "use another service, or s3.conditional_writes: single-writer (docs/cluster.md)",
    )


def _clean(storage: Storage, folder: str, tried: list[Any]) -> None:
    staged = [one.staged for one in tried if isinstance(one, Rights) and one.staged]
    try:
        storage.abort(staged)
        for info in storage.objects(folder):
            storage.delete(info.uri)
    except ChunkmapError:
        return  # What stays behind is a scratch folder of a few bytes.
