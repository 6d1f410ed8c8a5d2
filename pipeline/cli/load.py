"""Load a published output into a database, a Delta table or an endpoint: `chunkmap load`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.output import print_json, say, show_pairs
from pipeline.cli.progress_bar import LiveBar
from pipeline.config.load_file import (
    DATABASES,
    LoadFile,
    kind_of,
    load_file_of,
    read_load_file,
)
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import RunInterruptedError, UsageError
from pipeline.processes import record_interrupts, was_interrupted
from pipeline.report.humanize import duration, plural

if TYPE_CHECKING:
    from pipeline.load.records import LoadProgress, LoadSummary


def load(
    source: str,
    options: Mapping[str, object],
    environment: str | None,
    *,
    changes: Sequence[str] = (),
    dry_run: bool,
    as_json: bool,
) -> None:
    """Load an output and show the result.

    Args:
        source: A load file; with the option `into.uri`, the URI of an output.
        options: Values of the load file that options of the command replace, by dotted key.
        environment: Name of the environment.
        changes: Values from `--set`.
        dry_run: Only show what would be loaded.
        as_json: Print one JSON object.
    """
    file, settings = _file(source, options, changes), load_settings(environment)
    summary = _preview(file, settings) if dry_run else _load(file, settings, quiet=as_json)
    if as_json:
        print_json(summary)
    else:
        _show(file, summary)


def _file(source: str, options: Mapping[str, object], changes: Sequence[str]) -> LoadFile:
    if options["into.uri"] is None:
        if "://" in source:
            raise UsageError(
                f"{source} is an output: name the database, or another destination, too",
                hint=f"chunkmap load {source} --into warehouse.duckdb --table NAME",
            )
        return read_load_file(Path(source), options, changes)
    if changes:
        raise UsageError("--set changes a load file, and --into makes one needless: use either")
    last = source.rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip("._-")[:100] or "load"
    table = options["into.table"] or (last if _is_database(options["into.uri"]) else None)
    return load_file_of({"name": name, "input.uri": source, **options, "into.table": table})


def _is_database(uri: object) -> bool:
    try:
        return kind_of(str(uri)) in DATABASES
    except ValueError:
        return True  # It is refused when the file is made of it.


def _preview(file: LoadFile, settings: Settings) -> LoadSummary:
    from pipeline.flows.launch import load_secret
    from pipeline.load.connect import open_load
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.storage import open_storage

    with explain_unreachable_s3(settings):
        secret = load_secret(file, settings)
        return open_load(file, settings, open_storage(settings), secret=secret).preview()


def _load(file: LoadFile, settings: Settings, *, quiet: bool) -> LoadSummary:
    """Load as a flow run if a Prefect server is set, else in this process alone."""
    from pipeline.flows.launch import launch_load
    from pipeline.load.connect import open_load
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.storage import open_storage

    display = LoadDisplay(quiet=quiet)
    try:
        with display, record_interrupts(), explain_unreachable_s3(settings):
            display.begin("load", "reading what the destination lacks")
            if settings.prefect.api_url is not None or file.into.secret_block is not None:
                return launch_load(file, settings, display.loading)
            return open_load(file, settings, open_storage(settings), display.loading).run()
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or was_interrupted()):
            raise
        raise RunInterruptedError(
            "interrupted: commits that are loaded stay loaded",
            hint="give the same command again; it loads the rest",
        ) from error


class LoadDisplay(LiveBar):
    """Shows the progress of a load."""

    def loading(self, now: LoadProgress) -> None:
        """Show how many commits and rows are loaded."""
        if was_interrupted():
            raise KeyboardInterrupt
        counted = f"{now.commits:,}/{plural(now.of_commits, 'commit')}"
        speed = f"{now.rows / max(now.seconds, 1e-3):,.0f} rows/s"
        self.draw("load", counted, (now.rows, now.of_rows), f"{now.rows:,} rows, {speed}")


def _show(file: LoadFile, summary: LoadSummary) -> None:
    commits = plural(len(summary.commits), "commit")
    place = f"table {summary.table}" if summary.table else summary.destination
    if not summary.commits:
        say(
            f"Nothing to load: {place} has all of manifest {summary.manifest} "
            f"({plural(summary.held, 'commit')})."
        )
        return
    verb = "would load" if summary.dry_run else "loaded"
    made = ("would be created" if summary.dry_run else "created") if summary.created else ""
    added = f"columns added: {', '.join(summary.added)}" if summary.added else ""
    notes = "; ".join(filter(None, (made, added)))
    rows = {
        verb: f"{commits}, {plural(summary.rows, 'row')} ({summary.mode})",
        "had before": plural(summary.held, "commit") if summary.held else "",
        "requests": f"{summary.requests:,}" if summary.requests else "",
        "table": summary.table + (f" ({notes})" if notes else "") if summary.table else notes,
        "into": summary.destination,
        "output": f"{summary.output} manifest {summary.manifest}",
        "time": duration(summary.seconds),
    }
    show_pairs(file.name, {name: text for name, text in rows.items() if text})
