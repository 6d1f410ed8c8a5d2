"""A run's report: the same figures as a page, as JSON and as Markdown.

    render_html(report)       one self-contained page; opens offline
    render_json(report)       for programs; SCHEMA in run_json.py says what is in it
    render_markdown(report)   a short summary, for a Prefect artifact or a chat message

Each starts from a RunReport alone: nothing is read from disk or network.
"""

from __future__ import annotations

from pipeline.report.run_model import RunReport


def import_renderers() -> None:
    """Import what pages are made with, a second and a half, before it is needed."""
    import pipeline.report.page
    import pipeline.report.run_page  # noqa: F401


def render_html(report: RunReport) -> str:
    """The report as one HTML page that loads nothing. Takes seconds at 100,000 chunks."""
    from pipeline.report.page import render_page
    from pipeline.report.run_page import build_page

    return render_page(build_page(report))


def render_json(report: RunReport) -> str:
    """The report as one JSON object, on one line."""
    from pipeline.report.run_json import build_json

    return build_json(report)


def render_markdown(report: RunReport, location: str | None = None) -> str:
    """The report in a few lines of Markdown.

    Args:
        report: The run.
        location: Where the page is, to link to it.
    """
    from pipeline.report.run_markdown import build_markdown

    return build_markdown(report, location)
