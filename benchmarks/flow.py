"""The benchmarks as a Prefect flow: deployed and scheduled like any other.

    prefect deploy benchmarks/flow.py:benchmarks --name nightly --pool <pool> --cron "0 3 * * *"

The S3, the Prefect server and the Dask cluster are those of the settings; none is started.
"""

from __future__ import annotations

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact

from benchmarks.report.write import write_report
from benchmarks.suite.datasets import Scale
from benchmarks.suite.record import records_in
from benchmarks.suite.session import DEFAULT_ROOT, Request, Session, records_folder
from benchmarks.suite.settings import suite_settings


@flow(name="benchmarks", persist_result=False)
def benchmarks(  # noqa: PLR0917 - a deployment sets them by name
    names: list[str] | None = None,
    scale: Scale = "s",
    against: list[str] | None = None,
    repeat: int = 1,
    full: bool = False,
    root: str = DEFAULT_ROOT,
) -> str:
    """Measure, check, report; returns the report's URI.

    Args:
        names: Workloads or suites; none means all.
        scale: Of the datasets: s, m or l.
        against: Only these peers.
        repeat: Processes of each subject on each workload, interleaved.
        full: Every peer on every workload.
        root: URI under which benchmark data and reports live.
    """
    with suite_settings() as settings:
        logger = get_run_logger()
        request = Request(
            names=tuple(names or ()),
            scale=scale,
            against=None if against is None else tuple(against),
            repeat=repeat,
            full=full,
            root=root,
        )
        record = Session(settings, request, logger.info).run()
        earlier = [
            session
            for session in records_in(records_folder(settings))
            if session.scale == record.scale and session.created < record.created
        ]
        written = write_report(record, settings, root, earlier)
        create_markdown_artifact(markdown=written.markdown, key=f"benchmarks-{record.id}")
        create_link_artifact(link=written.uri, link_text="report", key=f"report-{record.id}")
        return written.uri
