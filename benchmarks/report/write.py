"""Write a session's report: a page, Markdown and JSON, here and next to the datasets in S3."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.markdown import build_markdown
from benchmarks.suite.record import Record
from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from pipeline.private import state_folder
from pipeline.report.page import render_page
from pipeline.storage import open_storage

_FIGURES = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)


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
    folder = state_folder(settings.state_dir, "bench", "reports", record.id)
    markdown = build_markdown(record, uri + "report.html")
    texts = {
        "report.html": render_page(build_page(record, earlier)),
        "report.md": markdown,
        "report.json": record.model_dump_json(indent=1),
    }
    storage = open_storage(settings)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        storage.put(uri + name, text.encode())
    return Written(folder / "report.html", uri + "report.html", markdown)


def update_docs(path: Path, record: Record) -> None:
    """Put a session's figures between the marks of a Markdown page.

    Raises:
        UsageError: the page has no marks.
    """
    text = path.read_text(encoding="utf-8")
    body = build_markdown(record)
    made, number = _FIGURES.subn(lambda found: found[1] + body + found[2], text)
    if not number:
        raise UsageError(
            f"{path} has no place for figures",
            hint="add the lines <!-- figures --> and <!-- end of figures -->",
        )
    path.write_text(made, encoding="utf-8")
