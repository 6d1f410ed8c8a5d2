"""Simulate a run and show the result: `chunkmap bench simulate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.simulation.answer import Answer, Part
from benchmarks.simulation.case import Case, parse_bytes, parse_count, parse_wait
from benchmarks.simulation.charts import build_page, efficient, plot
from benchmarks.simulation.curve import Point, efficient_up_to, simulate_around
from benchmarks.simulation.parameters import FILE, load_parameters, sources
from benchmarks.suite.machine import cores
from pipeline.cli.output import columns, out, print_json, say, show_pairs
from pipeline.config.settings import load_settings
from pipeline.errors import UsageError
from pipeline.report import humanize


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """The options of the command, as typed.

    Attributes:
        workers: Number of worker threads.
        chunks: Number of chunks, of equal size.
        bytes: Stored bytes of the columns that are read.
        rows: Number of rows, to show rows per second; empty if unknown.
        files: Number of objects; empty for one per chunk.
        wait: Time that the transform waits per chunk.
        prefixes: Number of prefixes that share the requests.
        reduces: Whether the job has a reduce.
        store: Name of the object store.
        changes: Changed parameters, as `name=value`.
        parameters: File of parameters; None for the one in the package.
        html: File to write a page to; None for none.
    """

    workers: str
    chunks: str
    bytes: str
    rows: str = ""
    files: str = ""
    wait: str = "0s"
    prefixes: str = "1"
    reduces: bool = False
    store: str = "amazon"
    changes: tuple[str, ...] = ()
    parameters: Path | None = None
    html: Path | None = None


def simulate(options: SimulationOptions, environment: str | None, *, as_json: bool) -> None:
    """Simulate a run, and show the result."""
    case, changes = _case(options, environment), _parse_changes(options.changes)
    path = options.parameters or FILE
    parameters = load_parameters(options.store, path, changes)
    # A small case is simulated faster than other processes start.
    processes = min(4, cores()) if case.chunks > 100_000 else 1
    answer, points = simulate_around(case, parameters, processes)
    if options.html is not None:
        page = build_page(answer, points, sources(options.store, path, changes))
        try:
            options.html.write_text(page, "utf-8")
        except OSError as error:
            raise UsageError(f"{options.html} cannot be written: {error.strerror}") from error
    if as_json:
        print_json(_to_dict(answer, points))
        return
    _show(answer, points)
    if options.html is not None:
        say(f"page: {options.html}")


def _case(options: SimulationOptions, environment: str | None) -> Case:
    settings = load_settings(environment)
    chunks = parse_count(options.chunks, "chunks")
    return Case(
        workers=parse_count(options.workers, "workers"),
        chunks=chunks,
        stored_bytes=parse_bytes(options.bytes),
        files=parse_count(options.files, "files") if options.files else chunks,
        rows=parse_count(options.rows, "rows") if options.rows else 0,
        wait_seconds=parse_wait(options.wait),
        prefixes=parse_count(options.prefixes, "prefixes"),
        batches=settings.batches,
        reduces=options.reduces,
        footer_mappers=settings.planner.map_threshold,
    )


def _parse_changes(texts: Iterable[str]) -> dict[str, str]:
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r} is not NAME=VALUE")
        changes[name.strip()] = value.strip()
    return changes


def _show(answer: Answer, points: Sequence[Point]) -> None:
    case = answer.case
    show_pairs(
        f"{case.chunks:,} chunks of {humanize.byte_size(case.chunk_bytes)} "
        f"on {case.workers:,} workers: {humanize.duration(answer.seconds)}",
        {
            "limited by": _describe(answer.limit),
            "next": _describe(answer.next_limit),
            "efficiency": f"{humanize.percent(answer.efficiency)} of the workers' time is spent on "
            f"chunks; at least 80% {efficient(points)}",
            "batches": f"{answer.batches:,} of {case.chunks / answer.batches:.1f} chunks",
            **_speeds(answer),
        },
    )
    _shares("\nPhases", answer.phases)
    _shares("\nWorker threads, while mapping", answer.threads)
    _shares("\nThe driver, while mapping", answer.driver)
    rows = [
        (
            part.name,
            humanize.duration(part.seconds),
            "" if part.binds_from is None else f"{part.binds_from:,}",
            part.advice,
        )
        for part in answer.parts
    ]
    limits = ("What limits", "alone it takes", "binds from workers", "what helps")
    out.print()
    out.print(columns(limits, rows, limits[1:3]))
    requests = {name: humanize.count(number) for name, number in answer.requests.items()}
    show_pairs("\nRequests", requests)
    money = {name: f"${value:,.2f}" for name, value in answer.dollars.items()}
    show_pairs("\nCost", {**money, "total": f"${sum(answer.dollars.values()):,.2f}"})
    head = ("Workers", "time", "efficiency", "cost", "limited by")
    lines = [
        (
            f"{point.workers:,}",
            humanize.duration(point.seconds),
            humanize.percent(point.efficiency),
            f"${point.dollars:,.2f}",
            point.limit,
        )
        for point in points
    ]
    out.print()
    out.print(columns(head, lines, head[:4]))
    out.print()
    say(plot(points), indent="")


def _describe(part: Part) -> str:
    binds = "" if part.binds_from is None else f", binds from {part.binds_from:,} workers on"
    return f"{part.name} ({humanize.duration(part.seconds)} alone{binds}); {part.advice} helps"


def _speeds(answer: Answer) -> dict[str, str]:
    case, seconds = answer.case, answer.seconds
    speeds = {"speed": humanize.byte_rate(case.stored_bytes / seconds)}
    if case.rows:
        speeds["rows"] = humanize.rate(case.rows / seconds, "rows")
    return speeds


def _shares(title: str, seconds: Mapping[str, float]) -> None:
    total = sum(seconds.values()) or 1.0
    shown = {
        name: f"{humanize.duration(value):>14}  {humanize.percent(value / total):>6}"
        for name, value in seconds.items()
    }
    show_pairs(title, shown)


def _to_dict(answer: Answer, points: Sequence[Point]) -> dict[str, object]:
    case = answer.case
    return {
        "case": {
            "workers": case.workers,
            "chunks": case.chunks,
            "bytes": case.stored_bytes,
            "files": case.files,
            "rows": case.rows,
            "wait_seconds": case.wait_seconds,
            "prefixes": case.prefixes,
            "reduces": case.reduces,
            "batches": case.batches.model_dump(mode="json"),
        },
        "seconds": answer.seconds,
        "efficiency": answer.efficiency,
        "efficient_up_to": efficient_up_to(points),
        "limit": asdict(answer.limit),
        "next_limit": asdict(answer.next_limit),
        "batches": answer.batches,
        "phases": dict(answer.phases),
        "threads": dict(answer.threads),
        "driver": dict(answer.driver),
        "parts": [asdict(part) for part in answer.parts],
        "requests": dict(answer.requests),
        "dollars": dict(answer.dollars),
        "prefect_behind": answer.prefect_behind,
        "curve": [asdict(point) for point in points],
    }
