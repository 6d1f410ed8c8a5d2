"""Report what this process has of a job's code: fingerprint, versions of packages, problems."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.config.job import Job, parse_job
from pipeline.config.settings import Settings, own_settings
from pipeline.errors import ChunkmapError, JobError, TransformError, TransformNotAllowedError
from pipeline.runs.transforms.loading import (
    job_fingerprint,
    load_functions,
    module_exists,
    named_code,
)
from pipeline.runs.transforms.packages import imported_packages, versions_in_use
from pipeline.runs.transforms.reach import allows
from pipeline.runs.worker.run_settings import received_settings

ALLOW_HINT = (
    "the workers' own list is the limit of what a run may ask for: add it to transforms.allow "
    "where they are started (CHUNKMAP_TRANSFORMS__ALLOW or their conf/base.yaml), and restart "
    "them: `chunkmap down`, then `chunkmap up`, for the local stack"
)


@dataclass(frozen=True, slots=True)
class CodeReport:
    """The code of a job in one process."""

    fingerprint: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that it imports."""
    problem: str = ""
    """Reason why it cannot be loaded."""
    hint: str = ""


def report_code(job: Job, settings: Settings) -> CodeReport:
    """Load a job's code as a batch would, and report it."""
    names = names_of(job)
    try:
        fingerprint = job_fingerprint(job, settings.transforms)
        sent = settings.transforms.functions
        modules = [name.partition(":")[0] for name in names if name not in sent]
        packages = imported_packages(modules, settings.transforms)
        packages += [package for value in sent.values() for package in value.packages]
        load_functions(job, settings.transforms)
    except ChunkmapError as error:
        return CodeReport(problem=str(error), hint=error.hint or "")
    return CodeReport(fingerprint, versions_in_use(packages))


def report_received(job_text: str, sent: str) -> CodeReport:
    """Report a job's code on a worker (see `received_settings`)."""
    own = own_settings()
    job = parse_job(job_text)
    try:
        settings = received_settings(own, sent)
    except TransformNotAllowedError as error:
        return CodeReport(problem=str(error), hint=error.hint or "")
    report = report_code(job, settings)
    refused = [
        name
        for name in names_of(job)
        if name not in settings.transforms.functions
        and not allows(own.transforms.allowed, name.partition(":")[0])
    ]
    if refused:
        problem = (
            f"transforms.allow does not allow {', '.join(refused)}: it is "
            f"{list(own.transforms.allow)}"
        )
        return CodeReport(problem=problem, hint=ALLOW_HINT)
    return report


def names_of(job: Job) -> list[str]:
    """List the functions and the schema of a job, its transform first."""
    return [name for name, _ in named_code(job)]


def missing_modules(sent: str) -> dict[str, str]:
    """Describe which modules of a driver's allow-list this worker refuses or does not find."""
    own = own_settings()
    settings = received_settings(own, sent).transforms
    problems = {}
    for name in json.loads(sent)["transforms"]["allow"]:
        if not allows(own.transforms.allowed, name):
            problems[name] = (
                f"does not allow it: its transforms.allow is {list(own.transforms.allow)}"
            )
        elif not module_exists(name, settings):
            problems[name] = f"does not find it: searched in {', '.join(settings.path)}"
    return problems


@contextmanager
def naming_worker(worker: str) -> Iterator[None]:
    """Name the worker in errors about its code; `serial` is this process."""
    try:
        yield
    except (JobError, TransformError, TransformNotAllowedError) as error:
        if worker != "serial":
            error.message = f"worker {worker}: {error.message}"
            error.args = (error.message,)
        raise
