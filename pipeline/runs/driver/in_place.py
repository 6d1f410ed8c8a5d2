"""Plan a job whose input is its own output: its files keep columns, and replace those they are of.

Such a run reads exactly the files of the current version. Once it is published, its input is what
it wrote. So a file that a run of the same job and code has made is not mapped again, unless that is
asked for (`--rebuild`): a column may be made of its former self.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Final

import polars as pl

from partitioning import Plan, PlanRequest
from partitioning.request import PinnedFiles
from pipeline.config.job import Job
from pipeline.errors import ConflictError, JobError, ObjectMissingError, StateError, UsageError
from pipeline.report.humanize import plural
from pipeline.runs.driver.overlap import is_in_place, own_input
from pipeline.runs.ledger.keys import folders_of
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import RunRecord
from pipeline.runs.transforms.fingerprint import scheme_of
from pipeline.storage import Storage, replaced_tables
from pipeline.table.adopted import adopted_versions
from pipeline.table.claims import finish_open_claim
from pipeline.table.errors import UploadsVanishedError, foreign_claim
from pipeline.table.log import TableLog
from pipeline.table.manifest import CommitEntry, Manifest, folders
from pipeline.table.publish import commits_of

MAP_AGAIN: Final = "to map all of them again, as they are now: --rebuild"


@dataclass(frozen=True, slots=True)
class InPlace:
    """The files of the current version that a job in place reads."""

    table_log: TableLog
    manifest: Manifest
    files: pl.DataFrame
    """Files to map (schema FILES, and `commit`)."""
    done_by: str = ""
    """Id of the run of this job and code that has made all files of the version; empty if none."""

    def request(self, request: PlanRequest) -> PlanRequest:
        """Return the request for these files."""
        output = self.table_log.output
        marks = adopted_versions(self.table_log, self.manifest.commits)
        keys = self.files["key"].to_list()
        pinned = PinnedFiles(
            label=f"version {self.manifest.number} of {output}",
            directories={f"{output}{key}": key.rpartition("/")[0] for key in keys},
            sizes=dict(zip((f"{output}{k}" for k in keys), self.files["bytes"], strict=True)),
            etags={f"{output}{key}": marks[key] for key in keys if key in marks},
        )
        return replace(request, uri=(output,), pinned=pinned)

    def nothing_to_do(self) -> UsageError:
        """Return the error for a job that has made all files already."""
        return UsageError(
            f"all {plural(len(self.files), 'file')} of {self.table_log.output} are from run "
            f"{self.done_by} of this job and code: there is nothing to do",
            hint=MAP_AGAIN,
        )


def find_in_place(
    job: Job, storage: Storage, code: str, *, again: bool = False, settle: bool = False
) -> InPlace | None:
    """Find the files that a job in place is to map; None if the job is not in place.

    Args:
        job: The job.
        storage: Where its files are.
        code: Fingerprint of its code.
        again: Map also what runs of the same job and code have made.
        settle: First finish what another process has begun to publish.

    Raises:
        UsageError: Nothing was published or adopted there, the job contradicts that its input is
            replaced, or only some of the files that would be replaced are to be mapped.
        ForeignClaimError: Another run must finish its own claim first.
    """
    if not is_in_place(job):
        return None
    _refuse_contradictions(job)
    table_log = TableLog(storage, job.output.uri)
    if table_log.head()[1] is None:
        raise own_input(job.input.uri[0], job.output.uri)
    manifest = _settled(table_log) if settle else table_log.manifest()
    files = table_log.snapshot(manifest)
    if files.is_empty():
        raise UsageError(f"{job.output.uri} has no files in version {manifest.number}")
    found = InPlace(table_log, manifest, files)
    if again:
        return found
    makers = _Makers(table_log, job, code).of_files(manifest, files)
    if all(makers):
        return replace(found, done_by=makers[-1])
    own = [bool(maker) for maker in makers]
    return replace(found, files=_without_own(job, files, own)) if any(own) else found


@dataclass(slots=True)
class _Makers:
    """Finds the runs in place of a job and code that files are from.

    A file may since have been the source of another run in place, which kept what it had.
    """

    table_log: TableLog
    job: Job
    code: str
    _own: dict[str, bool] = field(default_factory=dict)
    """Whether a run did the same work, by its id."""

    def of_files(self, manifest: Manifest, files: pl.DataFrame) -> list[str]:
        """Return the id of the run for each file of a manifest; empty if none of them did this.

        Args:
            manifest: The manifest.
            files: Files (schema FILES, and `commit`).
        """
        rows = zip(files["commit"].to_list(), files["chunk"].to_list(), strict=True)
        by_commit: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for index, (commit, chunk) in enumerate(rows):
            by_commit[commit].append((index, chunk))
        entries = {entry.name: entry for entry in manifest.commits}
        makers = [""] * files.height
        for name, members in by_commit.items():
            entry = entries[name]
            if not entry.in_place:
                continue
            found = [entry.run] * len(members)
            if not self._did_same(entry):
                found = self._of_sources(entry, [chunk for _, chunk in members])
            for (index, _), maker in zip(members, found, strict=True):
                makers[index] = maker
        return makers

    def _of_sources(self, entry: CommitEntry, chunks: list[str]) -> list[str]:
        """Return the ids as `of_files` for what a commit made some chunks of."""
        commit, output = self.table_log.load(entry), self.table_log.output
        base = self.table_log.manifest(commit.base)
        try:
            plan = Ledger(self.table_log.storage, output, entry.run).plan()
        except (StateError, ObjectMissingError):
            return [""] * len(chunks)  # Its state has expired.
        keys = {c.id: c.fragments[0].uri.removeprefix(output) for c in plan.chunks()}
        files = self.table_log.snapshot(base)
        wanted = {keys[chunk] for chunk in chunks if chunk in keys}
        files = files.filter(pl.col("key").is_in(list(wanted)))
        makers = dict(zip(files["key"].to_list(), self.of_files(base, files), strict=True))
        return [makers.get(keys.get(chunk, ""), "") for chunk in chunks]

    def _did_same(self, entry: CommitEntry) -> bool:
        if entry.run not in self._own:
            self._own[entry.run] = self._is_same(entry)
        return self._own[entry.run]

    def _is_same(self, entry: CommitEntry) -> bool:
        # Code that was fingerprinted by another scheme is most likely the same: a column that is
        # made of itself must not be made twice by an upgrade.
        codes = entry.code.split(",")
        schemes = {scheme_of(code) for code in codes}
        if self.code not in codes and scheme_of(self.code) in schemes:
            return False
        ledger = Ledger(self.table_log.storage, self.table_log.output, entry.run)
        try:
            stored, tables = ledger.job(), ledger.record().tables
        except (StateError, JobError, ObjectMissingError):
            return True  # Its state has expired, and its code is the same.
        return _work_of(stored) == _work_of(self.job) and not replaced_tables(tables or ())


def _without_own(job: Job, files: pl.DataFrame, own: list[bool]) -> pl.DataFrame:
    """Return the files that runs of the job have not made, if they can be replaced alone.

    Raises:
        UsageError: Replacing them would drop others, or map these once more.
    """
    files = files.with_columns(own=pl.Series(own), folder=pl.Series(folders(files)))
    others = files.filter(~pl.col("own"))
    if job.output.mode == "overwrite":
        others = others.with_columns(folder=pl.lit(""))
        files = files.with_columns(folder=pl.lit(""))
    mixed = files.filter("own").join(others, on="folder", how="semi")
    if mixed.height:
        where = mixed["folder"][0] or "the output"
        raise UsageError(
            f"{plural(mixed.height, 'file')} that a run of this job and code has made already "
            f"would be mapped again, with {plural(others.height, 'other file')}: {where} has both, "
            f"and mode {job.output.mode} replaces them together",
            hint=MAP_AGAIN
            + (
                ""
                if job.output.mode == "overwrite-partitions"
                else "; or replace only the folders of the others: output.mode overwrite-partitions"
            ),
        )
    return others.drop("own", "folder")


def _settled(table_log: TableLog) -> Manifest:
    try:
        return finish_open_claim(table_log)
    except UploadsVanishedError as error:
        raise foreign_claim(table_log.output, error) from error


def _refuse_contradictions(job: Job) -> None:
    """Refuse what would leave rows out of an output that is replaced by what is read of it.

    Raises:
        JobError: names the key.
    """
    source = job.input
    contradictions = {
        "input.include": bool(source.include),
        "input.exclude": bool(source.exclude),
        "input.changed_only": source.changed_only,
    }
    for key, is_set in contradictions.items():
        if is_set:
            raise JobError(
                f"{key} would leave rows out of {job.output.uri}, which is the input of this job "
                "and is replaced by what the job reads of it",
                hint=f"remove {key}, or choose another output",
            )
    if not job.output.keep_versions:
        raise JobError(
            f"output.keep_versions: 0 would delete the input of this job, {job.output.uri}, as "
            "soon as it is published",
            hint="keep at least one version, or choose another output",
        )


def _work_of(job: Job) -> object:
    """Return what a job makes of a file, whichever files it replaces together."""
    return job.transform, job.params, job.output.keep, job.output.rename


def refuse_other_folders(job: Job, in_place: InPlace, plan: Plan) -> None:
    """Refuse to replace folders one by one if files would not stay in theirs.

    Raises:
        UsageError: The output's files are in folders that are no Hive partitions, or one holds
            files without row groups only.
    """
    if job.output.mode != "overwrite-partitions":
        return
    old = set(folders(in_place.files))
    new = set(folders_of(plan).str.strip_suffix("/").to_list())
    if old != new:
        example = min(old ^ new)
        raise UsageError(
            f"files of {job.output.uri} would not stay in their folders ({example or 'the top'}): "
            "a run writes to the folders of Hive partitions only, and mode overwrite-partitions "
            "would leave the files that it reads in place",
            hint="replace the whole output: output.mode overwrite",
        )


def refuse_outdated(table_log: TableLog, record: RunRecord, plan: Plan, manifest: Manifest) -> None:
    """Refuse to resume a run in place whose input was replaced by others, or rolled back.

    Args:
        table_log: Table log of the output.
        record: Record of the run.
        plan: Its plan.
        manifest: Current manifest of the output.

    Raises:
        ConflictError: The run has published nothing, and files of its plan are not current.
    """
    if commits_of(table_log, record.run, record.base):
        return
    live = {table_log.output + key for key in table_log.keys(manifest.commits)}
    gone = [uri for uri in plan.table("objects")["uri"].to_pylist() if uri not in live]
    if gone:
        raise ConflictError(
            f"run {record.run} of this job is unfinished, and {plural(len(gone), 'file')} that it "
            f"reads of {table_log.output} were replaced or rolled back since, such as {gone[0]}",
            hint="make a new plan of the current version: --replan",
        )
