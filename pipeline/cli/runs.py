"""Act on runs (`chunkmap retry`, `cancel`, `publish`) and on the versions of an output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.cli.hints import command
from pipeline.cli.output import columns, notes, out, print_json, say
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import StateError, UsageError
from pipeline.processes import command_started
from pipeline.quality.results import checks_text
from pipeline.report.humanize import byte_size, instant, plural
from pipeline.runs.admin.known_outputs import named_outputs
from pipeline.runs.backfill.listing import KnownRuns
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import RunRecord
from pipeline.storage import Storage, open_storage
from pipeline.table.manifest import CommitEntry, Manifest

if TYPE_CHECKING:
    from pipeline.table.log import TableLog


def _ledger(run: str, output: str | None, settings: Settings, storage: Storage) -> Ledger:
    """Find a run by the first letters of its id, among the known outputs."""
    return KnownRuns(storage, named_outputs(settings.state_dir, output)).ledger(run)


def retry(
    run: str,
    output: str | None,
    environment: str | None,
    *,
    accept_code: bool,
    only_failed: bool,
    take_over: bool = False,
    local: bool = False,
    as_json: bool,
) -> None:
    """Resume a run by its id: failed chunks and, unless `only_failed`, those never attempted."""
    from pipeline.cli.run import local_workers, run_job, show
    from pipeline.runs.driver.plan import ResumeOptions

    settings = load_settings(environment)
    with local_workers(settings, wanted=local) as workers:
        ledger = _ledger(run, output, settings, open_storage(settings))
        if ledger.published() is not None:
            say(f"run {ledger.run} is published: there is nothing to retry", console=notes)
        flags = [*["--failed"] * only_failed, *["--accept-code"] * accept_code]
        flags += ["--local"] * local
        again = command("retry", ledger.run, *flags, environment=environment, output=output)
        resume = ResumeOptions(
            accept_code=accept_code, take_over=take_over, run=ledger.run, only_failed=only_failed
        )
        outcome = run_job(
            ledger.job(),
            settings,
            again,
            resume,
            quiet=as_json,
            began=command_started(),
            workers=workers,
        )
    show(outcome, as_json=as_json)


def debug(
    run: str,
    output: str | None,
    environment: str | None,
    index: int,
    flags: Mapping[str, bool],
    *,
    of_then: bool = False,
) -> int:
    """Map one chunk of a run in this terminal, or one piece of its reduced result.

    Args:
        run: Id of the run, or its first letters.
        output: Its output, if it is known.
        environment: Name of the environment.
        index: Number of the chunk or piece.
        flags: Whether each of the other options is given.
        of_then: Whether it is a piece.

    Returns:
        The exit code.
    """
    from pipeline.cli.debug import debug_chunk, refuse_beside
    from pipeline.runs.driver.then_stage import pieces_of

    refuse_beside("--debug-piece" if of_then else "--debug-chunk", flags)
    settings = load_settings(environment)
    ledger = _ledger(run, output, settings, open_storage(settings))
    if of_then:
        pieces = pieces_of(ledger, ledger.read()) if ledger.job().then is not None else None
        if pieces is None:
            raise UsageError(
                f"run {ledger.run} has no pieces of a reduced result (then), or none yet",
                hint="show how far it is: "
                + command("status", ledger.run, environment=environment, output=output),
            )
        ledger = pieces.ledger
    return debug_chunk(ledger.job(), settings, index, ledger)


def cancel(
    run: str, output: str | None, environment: str | None, *, discard: bool, as_json: bool
) -> None:
    """Ask the driver of a run to stop; keep its staged outputs, or abort them."""
    from pipeline.runs.admin.vacuum import discard_run, settle_run

    settings = load_settings(environment)
    storage = open_storage(settings)
    ledger = _ledger(run, output, settings, storage)
    if ledger.published() is not None:
        raise UsageError(f"run {ledger.run} is published already")
    if discard:
        settle_run(storage, ledger)  # What is published is not cancelled.
    ledger.cancel()
    aborted = discard_run(storage, ledger) if discard else 0
    if as_json:
        print_json({"run": ledger.run, "cancelled": True, "aborted": aborted})
        return
    kept = f"{plural(aborted, 'staged output')} aborted" if discard else "staged outputs are kept"
    say(f"run {ledger.run}: its driver stops within seconds; {kept}")


def publish(
    run: str, output: str | None, environment: str | None, *, without_failed: bool, as_json: bool
) -> None:
    """Publish the completed chunks of a run."""
    from pipeline.runs.driver.publish import publish_run
    from pipeline.runs.driver.quarantine import refuse_many_quarantined, unreadable_uris
    from pipeline.runs.driver.several_outputs import publish_several

    settings = load_settings(environment)
    storage = open_storage(settings)
    ledger = _ledger(run, output, settings, storage)
    record, done = ledger.record(), ledger.read().completions.height
    if done < record.chunks and (record.outputs or not without_failed):
        retry = command("retry", record.run, environment=environment, output=output)
        raise _unfinished(record, done, retry)
    unreadable = unreadable_uris(ledger.plan(), ledger.read())
    refuse_many_quarantined(ledger.job(), ledger.plan(), unreadable)
    if record.outputs:
        manifest = publish_several(storage, ledger)
    else:
        manifest = publish_run(storage, ledger, without_failed=without_failed)
    if as_json:
        left_out = record.chunks - done
        print_json({"run": ledger.run, "manifest": manifest, "chunks": done, "missing": left_out})
        return
    say(
        f"run {ledger.run}: {done:,} of {plural(record.chunks, 'chunk')} are in manifest {manifest}"
    )


def _unfinished(record: RunRecord, done: int, retry: str) -> UsageError:
    left = f"run {record.run} has {record.chunks - done:,} of {plural(record.chunks, 'chunk')} left"
    if record.outputs:
        return UsageError(
            f"{left}, and several outputs, which are published whole",
            hint=retry,
        )
    return UsageError(left, hint=f"{retry}, or publish without them: --without-failed")


def history(output: str, environment: str | None, *, as_json: bool) -> None:
    """List the manifests of an output, newest first."""
    from pipeline.table.log import TableLog

    table_log = TableLog(open_storage(load_settings(environment)), output)
    current = table_log.head()[0].current
    # Read oldest first: each manifest is replayed from the one before.
    added = [(table_log.manifest(n), table_log.added(n)) for n in range(1, current + 1)][::-1]
    is_table = bool(table_log.manifest(current).table)
    versions = _table_versions(table_log) if is_table else {}
    if as_json:
        found = _check_results(table_log, [entry for _, new in added for entry in new])
        # Only the commits that each adds: full lists would grow with the square of the versions.
        manifests = [
            {
                **manifest.model_dump(exclude={"full", "commits"}),
                **({"table_version": versions.get(manifest.number)} if is_table else {}),
                "commits": [
                    entry.model_dump() | {"check_results": found.get(entry.name, [])}
                    for entry in new
                ],
            }
            for manifest, new in added
        ]
        print_json({"manifests": manifests})
        return
    if not added:
        say("nothing is published yet")
        return
    by_windows = any(entry.window for _, new in added for entry in new)
    checked = any(entry.checks for _, new in added for entry in new)
    rows = [
        _history_row(manifest, new, by_windows=by_windows, checked=checked)
        for manifest, new in added
    ]
    if is_table:
        labels = [_table_label(manifest, versions) for manifest, _ in added]
        rows = [(row[0], label, *row[1:]) for row, label in zip(rows, labels, strict=True)]
    names = ["manifest", *["delta"] * is_table, "published (UTC)", "action", "run"]
    names += ["windows"] * by_windows + ["files", "rows", "bytes"] + ["checks"] * checked
    out.print(columns(names, rows, right=("files", "rows", "bytes")))


def _table_versions(table_log: TableLog) -> dict[int, int]:
    """Return the version of an output's table by manifest; warn if its log cannot be read."""
    from pipeline.table.delta.look import table_versions

    try:
        return table_versions(table_log)
    except StateError as error:
        say(str(error), mark="[yellow]")
        return {}


def _table_label(manifest: Manifest, versions: dict[int, int]) -> str:
    if manifest.number in versions:
        return str(versions[manifest.number])
    # It is committed by the next command that publishes, or its version has expired.
    is_pending = manifest.table and manifest.number > max(versions, default=0)
    return "pending" if is_pending else ""


def _check_results(
    table_log: TableLog, entries: Sequence[CommitEntry]
) -> dict[str, list[dict[str, Any]]]:
    """Read what checks have found in the rows of some commits, by the commit's name."""
    checked = [entry for entry in entries if entry.checks]
    return {
        commit.entry.name: [asdict(result) for result in commit.checks]
        for commit in table_log.load_all(checked)
    }


_ACTIONS = {
    "error": "publish",
    "append": "append",
    "overwrite": "overwrite",
    "overwrite-partitions": "overwrite partitions",
    "adopt": "adopt",
}
"""What a commit of each output mode did. Mode `error` publishes to an output without files."""


def _history_row(
    manifest: Manifest, new: Sequence[CommitEntry], *, by_windows: bool, checked: bool
) -> tuple[object, ...]:
    when = instant(manifest.created).removesuffix(" UTC")
    released = [name for entry in new for name in entry.releases]
    if manifest.rollback_of is not None or any(entry.mode == "release" for entry in new):
        action = f"rollback to {manifest.rollback_of}"
        if manifest.rollback_of is None:
            action = f"repair: gave up {', '.join(released)}" if released else "repair"
        return (manifest.number, when, action, *[""] * (4 + by_windows + checked))
    labels = sorted(entry.window for entry in new if entry.window)
    windows = "".join(labels[:1])
    if len(labels) > 1:
        windows = f"{len(labels)}, {labels[0]} to {labels[-1]}"
    return (
        manifest.number,
        when,
        ", ".join(dict.fromkeys(_ACTIONS.get(entry.mode, entry.mode) for entry in new)),
        ", ".join(dict.fromkeys(entry.run for entry in new if entry.run)),
        *([windows] if by_windows else []),
        f"{sum(entry.files for entry in new):,}",
        f"{sum(entry.rows for entry in new):,}",
        byte_size(sum(entry.bytes for entry in new)),
        *([checks_of(new)] if checked else []),
    )


def checks_of(entries: Sequence[CommitEntry]) -> str:
    """Sum up what checks found in the rows of some commits."""
    return checks_text(
        sum(entry.checks for entry in entries),
        sum(entry.warnings for entry in entries),
        sum(entry.rejected for entry in entries),
    )


def rollback(output: str, to: int | None, environment: str | None, *, as_json: bool) -> None:
    """Make an older manifest current again."""
    from pipeline.table import publish as publishing
    from pipeline.table.log import TableLog

    table_log = TableLog(open_storage(load_settings(environment)), output)
    before = table_log.head()[0].current
    manifest = publishing.rollback(table_log, to)
    version = _table_versions(table_log).get(manifest.number) if manifest.table else None
    if as_json:
        print_json(manifest.model_dump() | ({"table_version": version} if manifest.table else {}))
        return
    say(f"{table_log.output}: manifest {manifest.number} has the files of {manifest.rollback_of}")
    if version is not None:
        say(f"it is version {version} of the Delta table")
    undo = command("rollback", table_log.output, "--to", str(before), environment=environment)
    say(f"to undo it: {undo}", mark="[dim]")


def vacuum(
    output: str,
    environment: str | None,
    *,
    older_than: float,
    dry_run: bool,
    discard: list[str],
    as_json: bool,
) -> None:
    """Abort abandoned uploads and move files aside that no manifest names."""
    from pipeline.ingest.vacuum import discard_ingests, ingest_states
    from pipeline.runs.admin import vacuum

    storage = open_storage(load_settings(environment))
    runs, ingests = KnownRuns(storage, [output]), ingest_states(storage, output)
    discarded = [ingests.matching(run) or runs.ledger(run).run for run in discard]
    if not dry_run:
        discard_ingests(storage, output, discarded)
    done = vacuum.vacuum(
        storage,
        output,
        older_than=older_than,
        dry_run=dry_run,
        discard=discarded,
        others=ingests.finished,
    )
    if as_json:
        print_json(done)
        return
    would = "would be " if dry_run else ""
    say(
        f"{done.output}: {plural(done.uploads, 'abandoned upload')} {would}aborted, "
        f"{plural(done.replaced, 'file')} of old versions {would}deleted"
    )
    if done.table:
        say(
            "files that older versions of the Delta table name are kept; its own vacuum deletes "
            f"them: DeltaTable({done.output!r}).vacuum()"
        )
    if done.strays:
        say(
            f"{plural(len(done.strays), 'file')} that no manifest names {would}moved to "
            f"{done.output.rstrip('/')}.chunkmap/orphaned/; a later vacuum deletes them"
        )
    if done.spared:
        say(f"kept the unfinished runs {', '.join(done.spared)} (give one up: --discard RUN)")


def vacuum_state(
    output: str, environment: str | None, *, older_than: float, dry_run: bool, as_json: bool
) -> None:
    """Expire the state of old runs and backfills that no version needs."""
    from pipeline.ingest.vacuum import expire_ingests
    from pipeline.runs.backfill.vacuum_state import vacuum_state as expire

    settings = load_settings(environment)
    storage = open_storage(settings)
    done = expire(
        storage,
        output,
        older_than=older_than,
        dry_run=dry_run,
        local=settings.state_dir,
    )
    ingests = expire_ingests(storage, output, older_than=older_than, dry_run=dry_run)
    if as_json:
        print_json(asdict(done) | {"ingests": asdict(ingests)})
        return
    would = "would be " if dry_run else ""
    say(
        f"{done.output}: the state of {plural(len(done.runs), 'run')} and "
        f"{plural(len(done.backfills), 'backfill')} {would}deleted: "
        f"{plural(done.objects, 'object')}, {byte_size(done.bytes)}"
    )
    if ingests.ingests:
        say(
            f"the pages of {plural(len(ingests.ingests), 'ingest')} {would}deleted: "
            f"{plural(ingests.objects, 'object')}, {byte_size(ingests.bytes)}"
        )
    if ingests.unfinished:
        say(f"kept unfinished ingests: {', '.join(ingests.unfinished)}")
    if done.needed:
        say(f"kept {plural(len(done.needed), 'old run')} that the current or a kept version needs")
    if done.unfinished:
        retry = command("retry", "RUN", environment=environment, output=done.output)
        say(f"kept unfinished: {', '.join(done.unfinished)} (to finish one: {retry})")
