"""Ingest the pages of an API: `chunkmap ingest`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.hints import command, with_values
from pipeline.cli.output import print_json, say, show_pairs, warn
from pipeline.cli.progress_bar import LiveBar
from pipeline.config.ingest import Ingest, load_ingest
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import RunInterruptedError
from pipeline.processes import record_interrupts, was_interrupted
from pipeline.report.humanize import byte_size, duration, plural

if TYPE_CHECKING:
    from pipeline.ingest.run import IngestOptions, IngestProgress, IngestSummary

WAITS = {
    "fetch": "asking for pages, finding files, or reading rows",
    "plan": "reading everything, finding the types of fields",
    "stage": "writing Parquet",
    "publish": "making the files visible",
}
"""What is waited for in each phase."""


def ingest(
    path: Path,
    environment: str | None,
    *,
    changes: Sequence[str] = (),
    start: str | None = None,
    end: str | None = None,
    refresh: bool = False,
    as_json: bool,
) -> None:
    """Ingest what a file defines, and show the result."""
    window = {"window.from": start, "window.to": end}
    given = [f"{key}={value}" for key, value in window.items() if value is not None]
    definition = load_ingest(path, [*changes, *given])
    settings = load_settings(environment)
    from pipeline.ingest.run import IngestOptions
    from pipeline.runs.admin.known_outputs import remember_output

    display = IngestDisplay(quiet=as_json)

    def listen(progress: IngestProgress) -> None:
        display.show(progress)

    options = IngestOptions(refresh=refresh, listen=listen)
    try:
        with display, record_interrupts(display.stopping):
            summary = _run(definition, settings, options)
    except BaseException as error:
        if not (isinstance(error, KeyboardInterrupt) or was_interrupted()):
            raise
        # With the window: that of the file may be another one.
        flags = with_values("--set", changes)
        flags += with_values("--from", [start] if start is not None else [])
        flags += with_values("--to", [end] if end is not None else [])
        again = command(
            "ingest", str(path), *flags, *["--refresh"] * refresh, environment=environment
        )
        raise RunInterruptedError(
            "interrupted: stored pages are kept", hint=f"resume with: {again}"
        ) from error
    remember_output(settings.state_dir, summary.output)
    show(summary, as_json=as_json)


def _run(definition: Ingest, settings: Settings, options: IngestOptions) -> IngestSummary:
    """Run it as a flow if there is a Prefect server, else in this process."""
    if settings.prefect.api_url is None:
        from pipeline.ingest.run import ingest

        return ingest(definition, settings, options)
    from pipeline.flows.launch import launch_ingest

    return launch_ingest(definition, settings, options)


def show(summary: IngestSummary, *, as_json: bool = False) -> None:
    """Print the result of an ingest."""
    if as_json:
        print_json(summary.to_dict())
        return
    for note in summary.notes:
        warn(note)
    if summary.already:
        say(
            f"Ingest {summary.ingest} is published: {plural(summary.rows, 'row')} in manifest "
            f"{summary.manifest} or before. To read everything again: --refresh"
        )
        return
    asked = f"{summary.asked:,} asked for now" + (
        f", {plural(summary.retries, 'retry', 'retries')}" if summary.retries else ""
    )
    rows = {
        "state": f"published, manifest {summary.manifest}",
        "window": summary.window,
        "pages": f"{summary.pages:,} ({asked})" if summary.source == "http" else "",
        "read": plural(summary.pages, "file") if summary.source == "files" else "",
        "parts": f"{summary.pages:,}" if summary.source in ("sql", "source") else "",
        "rows": f"{summary.rows:,}",
        "files": f"{summary.files:,}, {byte_size(summary.bytes)}",
        "time": duration(summary.seconds),
        "output": summary.output,
    }
    shown = {name: value for name, value in rows.items() if value}
    show_pairs(f"{summary.name} · ingest {summary.ingest}", shown)


class IngestDisplay(LiveBar):
    """Shows the phases of an ingest and its pages."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet)
        self._phase = ""

    def show(self, now: IngestProgress) -> None:
        """Show the progress."""
        if now.phase != self._phase:
            self._phase = now.phase
            self.settle()
            self.begin(now.phase, WAITS[now.phase])
            if not self.is_drawn:
                self.line(f"{now.phase} … {WAITS[now.phase]}")
        fetched = now.fetched
        if now.phase == "fetch" and fetched.pages:
            share = (fetched.done, fetched.feeds) if fetched.feeds > 1 else (0, 0)
            speed = fetched.asked / max(fetched.seconds, 1e-3)
            retries = f", {plural(fetched.retries, 'retry', 'retries')}" if fetched.retries else ""
            rest = (
                f"{plural(fetched.records, 'record')}, {byte_size(fetched.bytes)}, {speed:.1f} "
                f"{fetched.unit}s/s{retries}"
            )
            self.draw("fetch", plural(fetched.pages, fetched.unit), share, rest)
        elif now.phase == "stage":
            share = (now.files, now.of_files)
            self.draw("stage", f"{now.files:,}/{plural(now.of_files, 'file')}", share, "staged")
