"""What `chunkmap bench simulate` does."""

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
    """The command's words, as they were typed.

    Attributes:
        workers: Worker threads.
        chunks: Of equal size.
        bytes: Stored, of the columns that are read.
        rows: For rows a second; empty if not known.
        files: Objects; empty for one a chunk.
        wait: What the transform waits for on each chunk.
        prefixes: Over which requests are spread.
        reduces: Whether the job has a reduce.
        store: Name of the object store.
        changes: `name=value` of parameters.
        parameters: File of parameters; None for the one in the package.
        html: Where to write a page; None for nowhere.
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


def simulate(asked: SimulationOptions, environment: str | None, *, as_json: bool) -> None:
    """Simulate what was asked for, and show what came of it."""
    case, changes = _case(asked, environment), _changes(asked.changes)
    path = asked.parameters or FILE
    parameters = load_parameters(asked.store, path, changes)
    # Small cases are done before other processes have started.
    processes = min(4, cores()) if case.chunks > 100_000 else 1
    answer, points = simulate_around(case, parameters, processes)
    if asked.html is not None:
        page = build_page(answer, points, sources(asked.store, path, changes))
        try:
            asked.html.write_text(page, "utf-8")
        except OSError as error:
            raise UsageError(f"{asked.html} cannot be written: {error.strerror}") from error
    if as_json:
        print_json(_told(answer, points))
        return
    _show(answer, points)
    if asked.html is not None:
        say(f"page: {asked.html}")


def _case(asked: SimulationOptions, environment: str | None) -> Case:
    settings = load_settings(environment)
    chunks = parse_count(asked.chunks, "chunks")
    return Case(
        workers=parse_count(asked.workers, "workers"),
        chunks=chunks,
        stored_bytes=parse_bytes(asked.bytes),
        files=parse_count(asked.files, "files") if asked.files else chunks,
        rows=parse_count(asked.rows, "rows") if asked.rows else 0,
        wait_seconds=parse_wait(asked.wait),
        prefixes=parse_count(asked.prefixes, "prefixes"),
        batches=settings.batches,
        reduces=asked.reduces,
        footer_mappers=settings.planner.map_threshold,
    )


def _changes(words: Iterable[str]) -> dict[str, str]:
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--set {word!r} is not NAME=VALUE")
        found[name.strip()] = value.strip()
    return found


def _show(answer: Answer, points: Sequence[Point]) -> None:
    case = answer.case
    show_pairs(
        f"{case.chunks:,} chunks of {humanize.byte_size(case.chunk_bytes)} "
        f"on {case.workers:,} workers: {humanize.duration(answer.seconds)}",
        {
            "limited by": _said(answer.limit),
            "next": _said(answer.next_limit),
            "efficiency": f"{humanize.percent(answer.efficiency)} of the workers' time goes into "
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
            one.name,
            humanize.duration(one.seconds),
            "" if one.binds_from is None else f"{one.binds_from:,}",
            one.advice,
        )
        for one in answer.parts
    ]
    limits = ("What limits", "alone it takes", "binds from workers", "what helps")
    out.print()
    out.print(columns(limits, rows, limits[1:3]))
    requests = {name: humanize.count(number) for name, number in answer.requests.items()}
    show_pairs("\nRequests", requests)
    money = {name: f"${value:,.2f}" for name, value in answer.dollars.items()}
    show_pairs("\nCost", {**money, "together": f"${sum(answer.dollars.values()):,.2f}"})
    head = ("Workers", "time", "efficiency", "cost", "limited by")
    lines = [
        (
            f"{one.workers:,}",
            humanize.duration(one.seconds),
            humanize.percent(one.efficiency),
            f"${one.dollars:,.2f}",
            one.limit,
        )
        for one in points
    ]
    out.print()
    out.print(columns(head, lines, head[:4]))
    out.print()
    say(plot(points), indent="")


def _said(part: Part) -> str:
    binds = "" if part.binds_from is None else f", binds from {part.binds_from:,} workers on"
    return f"{part.name} ({humanize.duration(part.seconds)} alone{binds}); {part.advice} helps"


def _speeds(answer: Answer) -> dict[str, str]:
    case, seconds = answer.case, answer.seconds
    found = {"speed": humanize.byte_rate(case.stored_bytes / seconds)}
    if case.rows:
        found["rows"] = humanize.rate(case.rows / seconds, "rows")
    return found


def _shares(title: str, seconds: Mapping[str, float]) -> None:
    total = sum(seconds.values()) or 1.0
    shown = {
        name: f"{humanize.duration(value):>14}  {humanize.percent(value / total):>6}"
        for name, value in seconds.items()
    }
    show_pairs(title, shown)


def _told(answer: Answer, points: Sequence[Point]) -> dict[str, object]:
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
        "parts": [asdict(one) for one in answer.parts],
        "requests": dict(answer.requests),
        "dollars": dict(answer.dollars),
        "prefect_behind": answer.prefect_behind,
        "curve": [asdict(one) for one in points],
    }
