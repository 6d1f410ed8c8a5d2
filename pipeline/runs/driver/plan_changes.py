"""Compare a plan with what the current version of its output was made of."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from partitioning import Plan
from partitioning.model import Status
from pipeline.concurrency import map_concurrently
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import JobError, ObjectMissingError, StateError, UsageError
from pipeline.report.humanize import byte_size, count, plural
from pipeline.runs.driver.overlap import is_in_place
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Origin
from pipeline.runs.transforms.fingerprint import changed_names
from pipeline.runs.transforms.loading import job_definitions, job_fingerprint
from pipeline.storage import Storage
from pipeline.table.log import TableLog
from pipeline.table.manifest import CommitEntry, rule_of
from pipeline.table.replay import window_label

MAX_NAMES = 5
"""Maximum number of changed definitions to name."""

Objects = Mapping[str, tuple[str, int]]
"""ETag and size of objects, by URI."""


@dataclass(frozen=True, slots=True)
class PlanChanges:
    """Changes of a plan since the current version of its output."""

    manifest: int
    """Number of the current version."""
    run: str
    """Id of the newest run in it."""
    added: int
    """Number of objects that no run of that version has read."""
    changed: int
    """Number of objects that have another ETag or size now."""
    removed: int
    """Number of objects of that version that are not in the plan."""
    bytes: int
    """Stored size of the added and changed objects."""
    windows: int | None
    """Number of windows with such objects; None for a job without windows."""
    is_new_code: bool
    """Whether the code differs from that of the newest run."""
    code: tuple[str, ...]
    """Names of the definitions that differ; empty if unknown."""
    params: tuple[str, ...]
    """Names of the parameters that differ."""

    @property
    def text(self) -> str:
        """Changes in one sentence."""
        objects = [
            f"{count(number)} {what}"
            for number, what in (
                (self.added, "added"),
                (self.changed, "changed"),
                (self.removed, "removed"),
            )
            if number
        ]
        parts = []
        if objects:
            noun = "object" if objects[0].startswith("1 ") else "objects"
            first, *others = objects
            number, _, what = first.partition(" ")
            parts.append(", ".join([f"{number} {noun} {what}", *others]))
            if self.windows is not None:
                parts.append(plural(self.windows, "window"))
            if self.bytes:
                parts.append(byte_size(self.bytes))
        if self.params:
            parts.append(f"params changed ({', '.join(self.params)})")
        if self.code:
            more = len(self.code) - MAX_NAMES
            names = ", ".join(f"`{name}`" for name in self.code[:MAX_NAMES])
            parts.append(f"code changed in {names}" + (f" and {more} more" if more > 0 else ""))
        elif self.is_new_code and not self.params:
            parts.append("code changed")
        changes = ", ".join(parts) or "nothing changed"
        return f"against manifest {self.manifest} (run {self.run}): {changes}"


def changes_text(changes: PlanChanges | None, version: int | None) -> str:
    """Describe the changes of a plan since the current version of its output.

    Args:
        changes: The changes; None without a run to compare with.
        version: Number of the manifest whose files are replaced, if the job is in place.
    """
    if changes is not None:
        return changes.text
    if version is not None:
        return f"in place: the files of version {version} are replaced"
    return "nothing is published yet"


def compare_with_published(
    storage: Storage, job: Job, settings: Settings, plan: Plan
) -> PlanChanges | None:
    """Compare a plan with the objects and the code of its output's current version.

    Args:
        storage: Where the output is.
        job: The job.
        settings: Settings of transforms.
        plan: Plan of its input.

    Returns:
        The changes; None if nothing is published, or not by runs whose state is there, or the job
        is in place.
    """
    if is_in_place(job):
        return None  # The files of its runs are its input.
    table_log = TableLog(storage, job.output.uri)
    manifest = table_log.manifest()
    entries = [entry for entry in manifest.commits if entry.adds_files and entry.run]
    runs = list(dict.fromkeys(entry.run for entry in entries))
    then: dict[str, tuple[str, int]] = {}
    for objects in map_concurrently(lambda run: _objects_of_run(table_log, run), runs):
        then |= objects
    if not then:
        return None
    now = _objects(plan)
    fresh = [uri for uri in now if then.get(uri) != now[uri]]
    added = sum(uri not in then for uri in fresh)
    definitions, params, is_new = _code_changes(table_log, job, settings, entries[-1])
    return PlanChanges(
        manifest=manifest.number,
        run=entries[-1].run,
        added=added,
        changed=len(fresh) - added,
        removed=sum(uri not in now for uri in then),
        bytes=sum(now[uri][1] for uri in fresh),
        windows=_windows(job, fresh),
        is_new_code=is_new,
        code=definitions,
        params=params,
    )


def _objects(plan: Plan) -> Objects:
    table = plan.table("objects").select(["uri", "etag", "size", "status"]).to_pylist()
    planned = (row for row in table if row["status"] == Status.PLANNED)
    return {row["uri"]: (row["etag"].strip('"'), row["size"]) for row in planned}


def _objects_of_run(table_log: TableLog, run: str) -> Objects:
    """Return the objects that a run has read; none if its plan no longer exists."""
    with suppress(StateError, ObjectMissingError):
        return _objects(Ledger(table_log.storage, table_log.output, run).plan())
    return {}


def _windows(job: Job, uris: list[str]) -> int | None:
    if job.window is None:
        return None
    rule = rule_of(job.window.windowing())
    return len({window_label(rule, uri.rpartition("/")[0]) for uri in uris} - {None})


def _code_changes(
    table_log: TableLog, job: Job, settings: Settings, newest: CommitEntry
) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Compare code and parameters with those of the newest commit.

    Returns:
        Names of changed definitions, names of changed parameters, and whether the code differs.
    """
    now = job_fingerprint(job, settings.transforms)
    if now in newest.code.split(","):
        return (), (), False
    ledger = Ledger(table_log.storage, table_log.output, newest.run)
    try:
        record, params = ledger.record(), ledger.job().params
    except (StateError, JobError, ObjectMissingError, UsageError):
        return (), (), True
    names = {*params, *job.params}
    changed = tuple(sorted(name for name in names if params.get(name) != job.params.get(name)))
    origin = record.origin or Origin()
    # The record's definitions are those of the code that created the run.
    known = origin.definitions if record.fingerprint in newest.code.split(",") else {}
    definitions = changed_names(known, job_definitions(job, settings.transforms))
    return tuple(definitions), changed, True
