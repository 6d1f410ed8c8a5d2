"""What the commands share in the terminal: progress, tables, JSON, quiet libraries."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.rounds import MapProgress

PLAIN_SECONDS = 5.0
"""How often a line is printed where there is no terminal."""

out = Console(highlight=False)
"""For results."""
notes = Console(stderr=True, highlight=False)
"""For everything else: with --json nothing but the object is on stdout."""


def quiet_libraries() -> None:
    """Before Prefect and Dask are imported: their logs go to files and the server, not here."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    for name in ("distributed", "stamina", "asyncio", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def print_json(value: Any) -> None:
    """One machine-readable object on stdout."""
    data = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    print(json.dumps(data, default=str), flush=True)


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError("the last unit returns")


def pairs(title: str, rows: Mapping[str, object]) -> Table:
    """A small table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


class Display:
    """Progress of a run: a bar in a terminal, a line every few seconds elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = notes.is_terminal and not quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._phase = ""
        self._printed = 0.0
        self._first: tuple[float, int, int, int] | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._bar = Progress(
                TextColumn("[bold]{task.fields[phase]:<8}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[said]}"),
                TimeElapsedColumn(),
                console=notes,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=None, phase="starting", said="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def phase(self, name: str) -> None:
        """Say what goes on now."""
        if name != self._phase:
            self._phase = name
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, phase=name, total=None if name == "plan" else 1)
            elif not self._quiet:
                notes.print(f"{name} …")

    def mapping(self, now: MapProgress) -> None:
        """Show how far the mapping is."""
        said = self._said(now)
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, phase="map", total=now.chunks, completed=now.done, said=said
            )
        elif not self._quiet and time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            notes.print(f"map {said}")

    def _said(self, now: MapProgress) -> str:
        if self._first is None:
            # Speed is of this driver's own work: what was done before does not count.
            self._first = (now.seconds, now.rows_in, now.bytes_in, now.done)
        started, rows, bytes_in, done = self._first
        seconds = max(now.seconds - started, 1e-3)
        speed = (now.done - done) / seconds
        left = now.chunks - now.done
        eta = f"{left / speed:,.0f} s" if speed > 0 else "–"
        failed = f"[red]{now.failed:,} failed[/], " if now.failed else ""
        return (
            f"{now.done:,}/{now.chunks:,} chunks, {failed}"
            f"{(now.rows_in - rows) / seconds:,.0f} rows/s, "
            f"{(now.bytes_in - bytes_in) / seconds / 1e6:,.1f} MB/s, ETA {eta}"
        )


@contextmanager
def timed() -> Iterator[list[float]]:
    """A list that holds the seconds of the block once it is over."""
    seconds: list[float] = []
    started = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - started)


def complain(text: str) -> None:
    """Print a warning."""
    notes.print(f"[yellow]note:[/] {text}")


def flush() -> None:
    """Let everything out before the process ends."""
    sys.stdout.flush()
    sys.stderr.flush()
