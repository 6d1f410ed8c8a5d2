"""Render a run's report as a page, as JSON and as Markdown.

    render_html(report)       one self-contained page; opens offline
    render_json(report)       for programs; SCHEMA in run_json.py describes it
    render_markdown(report)   a short summary, for a Prefect artifact or a chat message

Each needs only a RunReport. Nothing is loaded from the network.
"""

from __future__ import annotations

from pipeline.report.run_model import RunReport


def import_renderers() -> None:
    """Import the libraries for pages ahead of time; it takes a second and a half."""
    import pipeline.report.page
    import pipeline.report.run_page  # noqa: F401


def render_html(report: RunReport) -> str:
    """Render the report as one HTML page that loads nothing; 100,000 chunks take seconds."""
    from altair.utils.schemapi import debug_mode

    from pipeline.report.charts import VALIDATED
    from pipeline.report.page import render_page
    from pipeline.report.run_page import build_page

    with debug_mode(VALIDATED):  # Otherwise Altair validates each part of a chart as it is made.
        return render_page(build_page(report))


def render_json(report: RunReport) -> str:
    """Render the report as one JSON object on one line."""
    from pipeline.report.run_json import build_json

    return build_json(report)


def render_markdown(report: RunReport, location: str | None = None) -> str:
    """Render the report as a few lines of Markdown.

    Args:
        report: The run.
        location: The address of the page, to link to it.
    """
    from pipeline.report.run_markdown import build_markdown

    return build_markdown(report, location)
