"""Write a session's report: a page, Markdown and JSON, here and next to the datasets in S3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.markdown import build_markdown
from benchmarks.suite.record import Record
from benchmarks.suite.session import PROFILES, report_folder
from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from pipeline.report.page import render_page
from pipeline.storage import open_storage


@dataclass(frozen=True, slots=True)
class Written:
    """Where a report is."""

    html: Path
    uri: str
    markdown: str


def write_report(
    record: Record, settings: Settings, root: str, earlier: Sequence[Record] = ()
) -> Written:
    """Render a session and keep it in `<root>/reports/<id>/` and under the state folder.

    Args:
        record: The session.
        settings: Name the storage and the state folder.
        root: URI under which benchmark data lives.
        earlier: Other sessions of the same scale, oldest first.
    """
    from benchmarks.report.page import build_page

    uri = f"{root.rstrip('/')}/reports/{record.id}/"
    folder = report_folder(settings, record.id)
    profiles = sorted(path.name for path in (folder / PROFILES).glob("*.svg"))
    markdown = build_markdown(record, uri + "report.html")
    texts = {
        "report.html": render_page(build_page(record, earlier, profiles)),
        "report.md": markdown,
        "report.json": record.model_dump_json(indent=1),
    }
    storage = open_storage(settings)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        storage.put(uri + name, text.encode())
    for name in profiles:
        storage.put(f"{uri}{PROFILES}/{name}", (folder / PROFILES / name).read_bytes())
    return Written(folder / "report.html", uri + "report.html", markdown)


def print_table(text: str, place: str, docs: Path | None) -> None:
    """Print a table, and put it into the place of a page, if one is named."""
    if docs is not None:
        update_docs(docs, place, text)
    print(text, end="")


def update_docs(path: Path, place: str, text: str) -> None:
    """Put generated text between the marks of a place in a Markdown page.

    Raises:
        UsageError: The page has no such marks.
    """
    page = path.read_text(encoding="utf-8")
    first, last = f"<!-- {place} -->", f"<!-- end of {place} -->"
    before, begin, rest = page.partition(first + "\n")
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise UsageError(
            f"{path} has no place for {place}", hint=f"add the lines {first} and {last}"
        )
    path.write_text(before + begin + text + end + after, encoding="utf-8")
