"""Find out where the code and the input of a plan came from, for its reports."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Protocol

from cachetools import TTLCache, cached

from partitioning import PlanResult
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.runs.driver.bytes_to_read import bytes_to_read
from pipeline.runs.ledger.records import Origin, Planning
from pipeline.runs.transforms.fingerprint import changed_names, explain_difference
from pipeline.runs.transforms.loading import job_definitions

COMMIT_SECONDS = 10.0
"""Seconds for which a commit is known: git takes some hundredths of a second each time."""
GIT_SECONDS = 5.0
"""Seconds that git may take; after that, the commit is unknown."""


class HasOrigin(Protocol):
    """The record of a run or of a backfill."""

    @property
    def transform(self) -> str:
        """Name of its transform."""
        ...

    @property
    def fingerprint(self) -> str:
        """Fingerprint of its code."""
        ...

    @property
    def origin(self) -> Origin | None:
        """Where its code came from."""
        ...


def origin_of(job: Job, settings: Settings, result: PlanResult) -> Origin:
    """Collect the digests of a job's code, its git commit, and the figures of a planning."""
    to_read = {"bytes_to_read": bytes_to_read(result.plan)}
    return Origin(
        definitions=job_definitions(job, settings.transforms),
        commit=commit_of(job.transform.partition(":")[0]),
        planning=Planning.of(result.explain).model_copy(update=to_read),
    )


def explain_code(record: HasOrigin, code: str, job: Job, settings: Settings) -> str:
    """Explain how a job's present code differs from that of a run, by the names that changed.

    Args:
        record: The run's transform, fingerprint and origin.
        code: Present fingerprint.
        job: The job.
        settings: Which modules are allowed.
    """
    then = record.origin.definitions if record.origin is not None else {}
    names = changed_names(then, job_definitions(job, settings.transforms)) if then else []
    return explain_difference(record.transform, record.fingerprint, code, names)


@cached(TTLCache(maxsize=16, ttl=COMMIT_SECONDS), lock=Lock())
def commit_of(module: str) -> str:
    """Return the git commit of a module's file, with `-dirty` if files have changed since.

    Asked again after COMMIT_SECONDS: planning, the driver and its reports all want it.

    Returns:
        An empty text if the file is in no repository, or there is no git.
    """
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return ""  # A notebook's functions, or those of another program.
    if spec is None or not spec.has_location or spec.origin is None:
        return ""
    folder = Path(spec.origin).parent
    if not _may_be_tracked(folder):
        return ""
    # Tracked files only: a package installed below a repository is not of its commit.
    tracked = _git(folder, "ls-files", "--error-unmatch", spec.origin)
    if not tracked:
        return ""
    return _git(folder, "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*")


def _may_be_tracked(folder: Path) -> bool:
    """Whether git could find a repository of a folder: it is not asked where there is none."""
    folders = (folder, *folder.parents)
    return "GIT_DIR" in os.environ or any((each / ".git").exists() for each in folders)


def _git(folder: Path, *arguments: str) -> str:
    """Return what git prints; nothing if it fails."""
    try:
        found = subprocess.run(
            ["git", *arguments],
            check=True,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()
