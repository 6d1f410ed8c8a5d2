"""Adopt existing files: take them into a version of an output as they are, without touching them.

From then on they are files like others: a run may replace them, a rollback brings them back, and
they are deleted with the last kept version that names them. It is the one case in which an output
holds what chunkmap did not write, and in which a job may read its own output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import polars as pl

from partitioning import ObjectInfo, Plan, PlanRequest, plan_dataset
from partitioning.listing import list_objects
from partitioning.request import PinnedFiles
from pipeline.concurrency import map_concurrently
from pipeline.errors import (
    AccessDeniedError,
    ConflictError,
    InputError,
    ObjectMissingError,
    UsageError,
)
from pipeline.report.humanize import plural
from pipeline.storage import Storage, StorageReader, join, parse, require_conditional_writes
from pipeline.table.adopted import adopted_versions, is_version, mark_of
from pipeline.table.claims import finish_open_claim
from pipeline.table.columns import Columns, digest_columns
from pipeline.table.errors import (
    CommitsConflictError,
    UploadsVanishedError,
    changed_files,
    foreign_claim,
)
from pipeline.table.keys import MAX_OUTPUT_KEY_BYTES, original_key, run_of_key
from pipeline.table.log import TableLog
from pipeline.table.manifest import ADOPT, FILES, Commit, CommitEntry, Manifest
from pipeline.table.output_uri import refuse_ambiguous_output
from pipeline.table.publish import publish, refuse_link
from pipeline.table.retention import kept_versions, replaced_keys
from pipeline.uris import state_prefix

ATTEMPTS = 5
"""Maximum number of times that files are listed again because another process has published."""
MAX_PARENTS = 8
"""Maximum number of folders above an output that are checked for being outputs themselves."""
MAX_NAMED = 3
"""Maximum number of objects that an error names."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """What an adoption took, or would take."""

    output: str
    manifest: int
    """Number of the current version; without new files, the one that was current before."""
    files: int
    """Number of files that were adopted now; 0 if the version has all of them already."""
    rows: int
    bytes: int
    columns: Columns
    """Types of the columns of these files, as Polars spells them."""
    adopted_before: int
    """Number of files of the current version that were adopted before."""
    replaced_in: str
    """URI of the folder to which adopted files are moved once a run replaces them."""
    dry_run: bool


def adopt(storage: Storage, output: str, *, dry_run: bool = False) -> Adoption:
    """Take the Parquet files of a prefix into a new version of the output, as they are.

    Their footers are read, and nothing of them is written, moved or deleted. Doing it twice changes
    nothing; files that have appeared since are taken by a further commit. It may end at any moment,
    and be repeated.

    Args:
        storage: Where the files are.
        output: URI of the prefix, which becomes an output.
        dry_run: Only look.

    Raises:
        UsageError: The prefix has objects that are no Parquet files, or cannot become an output.
        ConflictError: Adopted files were changed since; others publish all the time.
        PlanningError: There are no files, some cannot be read, or their schemas differ.
        SchemaChangedError: The output has other columns than new files.
    """
    table_log = TableLog(storage, output)
    _refuse_place(table_log)
    for attempt in range(ATTEMPTS):
        manifest = _unclaimed(table_log) if dry_run else _settled(table_log)
        new = _new_files(table_log, manifest, dry_run=dry_run)
        before = _adopted_files(table_log, manifest)
        if not new:
            if not manifest.number:
                raise InputError(f"there are no files below {output}")
            return _result(table_log, manifest, None, before, dry_run=dry_run)
        draft = _draft(table_log, manifest, _plan(table_log, new))
        if dry_run:
            return _result(table_log, manifest, draft, before, dry_run=True)
        # Only now, so that a refused prefix is left untouched.
        require_conditional_writes(storage, table_log.output)
        try:
            published = publish(table_log, draft)
        except CommitsConflictError:
            if attempt + 1 == ATTEMPTS:
                raise
            continue
        return _result(table_log, published.manifest, draft, before, dry_run=False)
    raise AssertionError("each attempt returns or raises")


def _result(
    table_log: TableLog, manifest: Manifest, draft: Commit | None, before: int, *, dry_run: bool
) -> Adoption:
    entry = None if draft is None else draft.entry
    return Adoption(
        output=table_log.output,
        manifest=manifest.number,
        files=0 if entry is None else entry.files,
        rows=0 if entry is None else entry.rows,
        bytes=0 if entry is None else entry.bytes,
        columns={} if draft is None else draft.columns,
        adopted_before=before,
        replaced_in=join(table_log.state, "replaced") + "/",
        dry_run=dry_run,
    )


def _refuse_place(table_log: TableLog) -> None:
    """Refuse a prefix that cannot become an output.

    Raises:
        UsageError: It is a link, or lies in an output or its state.
    """
    storage, output = table_log.storage, table_log.output
    refuse_ambiguous_output(output)
    refuse_link(output)
    names = parse(output).key.rstrip("/").split("/")
    root = output[: len(output) - len(parse(output).key)]
    parents = [f"{root}{'/'.join(names[:end])}/" for end in range(len(names) - 1, 0, -1)]

    def is_output(uri: str) -> bool:
        try:
            storage.head(join(state_prefix(uri), "HEAD.json"))
        except (ObjectMissingError, AccessDeniedError):
            return False
        return True

    above = [uri for uri in parents[:MAX_PARENTS] if uri.strip("/") != root.strip("/")]
    for uri, found in zip(above, map_concurrently(is_output, above), strict=True):
        if found:
            raise UsageError(
                f"{output} lies in {uri}, which is an output of chunkmap already",
                hint=f"adopt that one: chunkmap adopt {uri}",
            )


def _settled(table_log: TableLog) -> Manifest:
    """Finish what another process has begun to publish; return the current manifest."""
    if table_log.head()[1] is not None:
        require_conditional_writes(table_log.storage, table_log.output)
    try:
        return finish_open_claim(table_log)
    except UploadsVanishedError as error:
        raise foreign_claim(table_log.output, error) from error


def _unclaimed(table_log: TableLog) -> Manifest:
    """Return the current manifest, if no process is publishing: its files would count as new."""
    head, _ = table_log.head()
    if head.publishing is not None:
        raise ConflictError(
            f"{table_log.output} is being published to, or that was interrupted",
            hint=f"try again later; show what is open: chunkmap repair {table_log.output}",
        )
    return table_log.manifest(head.current)


def _adopted_files(table_log: TableLog, manifest: Manifest) -> int:
    """Return how many of a manifest's files are adopted ones that no run has replaced."""
    if not manifest.adopted:
        return 0
    adopted = adopted_versions(table_log, manifest.commits)
    return len(set(map(original_key, table_log.keys(manifest.commits))).intersection(adopted))


def _new_files(table_log: TableLog, manifest: Manifest, *, dry_run: bool) -> dict[str, ObjectInfo]:
    """Return the objects of the output that no version names, by key, if all can be adopted.

    Raises:
        UsageError, InputError: Some of them cannot.
        ConflictError: Adopted files of the manifest were changed.
    """
    output = table_log.output
    if manifest.table:
        raise UsageError(
            f"{output} is a table, to which only its log adds files",
            hint="adopt files of plain prefixes",
        )
    found = {i.uri.removeprefix(output): i for i in table_log.storage.objects(output)}
    _refuse_changed(table_log, manifest, found)
    named = set(table_log.keys(manifest.commits))
    if dry_run:  # The next command moves them.
        named.update(replaced_keys(table_log, manifest))
    new = {key: info for key, info in found.items() if key not in named}
    if new:
        _refuse_names(table_log, manifest, new)
    return new


def _refuse_changed(
    table_log: TableLog, manifest: Manifest, found: Mapping[str, ObjectInfo]
) -> None:
    """Raise ConflictError if adopted files of a manifest were changed or deleted."""
    if not manifest.adopted:
        return
    live = set(table_log.keys(manifest.commits))
    marks = adopted_versions(table_log, manifest.commits)
    changed = sorted(
        key
        for key in live.intersection(marks)
        if key not in found or not is_version(found[key], marks[key])
    )
    if changed:
        raise changed_files(output=table_log.output, state=table_log.state, keys=changed)


def _refuse_names(table_log: TableLog, manifest: Manifest, new: Mapping[str, ObjectInfo]) -> None:
    """Refuse objects that are no data, and keys that the protocol needs for itself."""
    output = table_log.output
    listing = list_objects(PlanRequest(output), StorageReader(table_log.storage))
    data = {info.uri.removeprefix(output) for info in listing.objects}
    _refuse(
        output,
        [key for key in new if key not in data],
        "that an output cannot hold: it has Parquet files only (*.parquet, *.parq, *.pq, with "
        "names that do not begin with _ or .)",
        "move them away; readers of the files do not need them",
    )
    _refuse(
        output,
        [key for key in new if original_key(key) != key],
        "with names such as chunkmap gives to files that a rollback brings back (.r1.parquet)",
        "rename them"
        if not manifest.number
        else f"rename them; if chunkmap has left them there: chunkmap repair {output}",
    )
    base = len(parse(output).key.encode())
    _refuse(
        output,
        [k for k in new if base + len(k.encode()) > MAX_OUTPUT_KEY_BYTES]
        if parse(output).scheme == "s3"
        else [],
        f"with keys of more than {MAX_OUTPUT_KEY_BYTES:,} bytes, to which a rollback could add "
        "nothing",
        "give them shorter keys",
    )
    if not manifest.number:
        return
    _refuse(
        output,
        [key for key in new if run_of_key(key) is not None],
        "that runs of chunkmap wrote, and that no version names",
        f"show what they are: chunkmap repair {output}; chunkmap vacuum {output} --dry-run",
    )
    _refuse(
        output,
        _named_before(table_log, manifest, new),
        "with keys of files of earlier versions, which they would be mistaken for",
        "rename them",
    )


def _refuse(output: str, keys: Collection[str], why: str, hint: str) -> None:
    if keys:
        shown = ", ".join(sorted(keys)[:MAX_NAMED]) + (" …" if len(keys) > MAX_NAMED else "")
        raise InputError(
            f"{output} cannot be adopted: it has {plural(len(keys), 'object')} {why}: {shown}",
            hint=hint,
        )


def _named_before(table_log: TableLog, manifest: Manifest, keys: Collection[str]) -> list[str]:
    """Return the keys that an earlier version names."""
    entries = [e for e in table_log.history(manifest.number) if e.mode != "release"]
    past = {
        key
        for commit in table_log.footprints(entries)
        for names in commit.folders.values()
        for key in names
    }
    return [key for key in keys if key in past]


def _plan(table_log: TableLog, new: Mapping[str, ObjectInfo]) -> Plan:
    """Read the footers of some files, which must have one schema. Raises as `plan_dataset`."""
    pinned = PinnedFiles(
        label=f"the files to adopt in {table_log.output}",
        directories={info.uri: key.rpartition("/")[0] for key, info in new.items()},
        sizes={info.uri: info.size for info in new.values()},
        etags={info.uri: mark_of(info) for info in new.values()},
    )
    request = PlanRequest(table_log.output, pinned=pinned)
    return plan_dataset(request, StorageReader(table_log.storage)).plan


def _draft(table_log: TableLog, manifest: Manifest, plan: Plan) -> Commit:
    """Draft the commit that adopts the files of a plan; the same files give the same one."""
    files = _files_of(table_log, plan)
    columns = {n: str(kind) for n, kind in plan.dtypes.items() if n not in plan.hive_columns}
    identity = [manifest.number, *files.select("key", "rows", "bytes", "parts").iter_rows()]
    entry = CommitEntry(
        name=f"{ADOPT}-{_digest(identity)[:16]}",
        run="",
        mode=ADOPT,
        files=files.height,
        rows=int(files["rows"].sum()),
        bytes=int(files["bytes"].sum()),
        # It replaces no file, so it must not use up one of the versions that are kept.
        keep_versions=kept_versions(manifest) + bool(manifest.commits),
        columns=digest_columns(columns),
    )
    return Commit(entry, manifest.number, (), files, columns=columns)


def _files_of(table_log: TableLog, plan: Plan) -> pl.DataFrame:
    """Return the files of a plan (schema FILES); `parts` holds the version mark of each."""
    objects = pl.DataFrame(pl.from_arrow(plan.table("objects").select(["uri", "etag", "size"])))
    groups = pl.DataFrame(pl.from_arrow(plan.table("row_groups").select(["object", "rows"])))
    counts = dict(groups.group_by("object").agg(pl.col("rows").sum()).iter_rows())
    marks = [etag.strip('"') for etag in objects["etag"].to_list()]
    uris = objects["uri"].to_list()
    return pl.DataFrame(
        {
            "key": [uri.removeprefix(table_log.output) for uri in uris],
            "rows": [counts.get(number, 0) for number in range(len(uris))],
            "bytes": objects["size"],
            "sha256": "",
            "chunk": [_digest([u, mark])[:32] for u, mark in zip(uris, marks, strict=True)],
            "index": range(len(uris)),
            "attempt": "",
            "upload": "",
            "parts": [[mark] for mark in marks],
        },
        schema=FILES,
    ).sort("index")


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
