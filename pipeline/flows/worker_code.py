"""Check, before anything is mapped, that every worker has a job's code, packages and settings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.cluster.client import ClusterClient
from pipeline.cluster.versions import few
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import VersionMismatchError
from pipeline.runs.worker.code_report import CodeReport, report_code, report_received
from pipeline.runs.worker.run_settings import (
    keep_functions,
    lacking_functions,
    sent_functions,
    sent_settings,
)

CODE_SECONDS = 20.0
"""Maximum seconds in which a worker imports a job's code."""
SEND_SECONDS = 60.0
"""Maximum seconds in which all workers get a function that is sent by value."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A difference between this process and some workers, or a problem of theirs."""

    problem: str
    workers: tuple[str, ...]
    hint: str

    def __str__(self) -> str:
        return f"{self.problem}, on worker {few(self.workers)}"


def check_code(runner: Any, job: Job, settings: Settings) -> None:
    """Refuse a cluster where some worker cannot run a job's code, or has other code or packages.

    Workers that do not answer are ignored; a batch that they get fails later, with the same error.

    Raises:
        VersionMismatchError: It names what differs, and the workers.
    """
    mismatches = find_mismatches(ClusterClient(runner.client), job, settings)
    if mismatches:
        raise VersionMismatchError(
            f"the workers cannot run {job.transform}: " + "; ".join(map(str, mismatches)),
            mismatches[0].hint or None,
        )


def find_mismatches(cluster: ClusterClient, job: Job, settings: Settings) -> list[Mismatch]:
    """Compare a job's code in this process with that of each worker."""
    ours = report_code(job, settings)
    names = {worker.address: worker.name for worker in cluster.workers()}
    _send_functions(cluster, sent_functions(settings))
    answers = cluster.ask(
        report_on_worker, job.to_yaml(), sent_settings(settings), seconds=CODE_SECONDS
    )
    found: dict[tuple[str, str], list[str]] = {}
    for address, report in answers.items():
        if isinstance(report, CodeReport):
            for problem in _differences(job, ours, report):
                found.setdefault(problem, []).append(names.get(address, address))
    return [Mismatch(problem, tuple(some), hint) for (problem, hint), some in found.items()]


def _send_functions(cluster: ClusterClient, functions: dict[str, bytes]) -> None:
    """Send functions by value to the workers that lack them; others ask for them later."""
    if not functions:
        return
    answers = cluster.ask(lacking_functions, list(functions), seconds=CODE_SECONDS)
    for digest, parcel in functions.items():
        those = [at for at, lacks in answers.items() if isinstance(lacks, list) and digest in lacks]
        cluster.tell(those, keep_functions, [parcel], seconds=SEND_SECONDS)


async def report_on_worker(job_text: str, sent: str) -> CodeReport:
    """Report a job's code on a worker, without blocking its event loop."""
    return await asyncio.to_thread(report_received, job_text, sent)


def _differences(job: Job, ours: CodeReport, theirs: CodeReport) -> Iterator[tuple[str, str]]:
    """Yield each problem with a hint."""
    if theirs.problem and theirs.problem != ours.problem:
        yield theirs.problem, theirs.hint
        return
    for name, version in ours.versions.items():
        there = theirs.versions.get(name, "none")
        if there != version:
            yield (
                f"package {name} is {version} here, {there} there",
                "install the same version for the workers, then restart them: `chunkmap down`, "
                "then `chunkmap up`, for the local stack",
            )
    if theirs.fingerprint != ours.fingerprint:
        yield (
            f"{job.transform} has other code: fingerprint {ours.fingerprint} here, "
            f"{theirs.fingerprint} there",
            "give the workers the same version of the code, and the same transforms.allow",
        )
