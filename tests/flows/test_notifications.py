"""Who is told what: receivers of each kind really get the message that an event makes."""

from __future__ import annotations

import asyncio
import email
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from apprise import Apprise
from prefect.server.utilities.user_templates import render_user_template

from pipeline.errors import DeployFileError
from pipeline.flows.deploy.kinds import BLOCKS
from pipeline.flows.deploy.notifications import MESSAGES, notification_resources
from pipeline.flows.deploy.resources import Resource
from tests.config.test_deploy_file import VARIABLES, write
from tests.support.runs_by_hand import OUTPUT

# One of Apprise's plug-ins imports it.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

SLACK = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
TEAMS = (
    "https://prod-1.westus.logic.azure.com:443/workflows/3XXX/triggers/manual/paths/invoke"
    "?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=SIGNATURE"
)


def resources(folder: Path, kind: str, url: str) -> list[Resource]:
    from pipeline.config.deploy_file import read_deployed

    notify = {"ops": {"kind": kind, "env": "OPS_URL"}}
    write(folder, {"work_pool": {"name": "prod"}, "notify": notify})
    return notification_resources(
        read_deployed(folder, "prod", {**VARIABLES, "OPS_URL": url}, "c0ffee")
    )


@contextmanager
def mail_server() -> Iterator[tuple[int, list[str]]]:
    """A server of SMTP that takes any mail; yields its port, and what it was sent."""
    mails: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 ready\r\n")
            text: list[str] | None = None
            for raw in self.rfile:
                line = raw.decode().rstrip("\r\n")
                if text is None:
                    text = [] if line.upper() == "DATA" else None
                    self.wfile.write(b"250 ok\r\n" if text is None else b"354 go on\r\n")
                elif line == ".":
                    mails.append("\n".join(text))
                    text = None
                    self.wfile.write(b"250 ok\r\n")
                else:
                    text.append(line)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_address[1], mails
        finally:
            server.shutdown()
            thread.join()


def text_of(incident: str, **payload: Any) -> tuple[str, str]:
    """Subject and body as the Prefect server makes them of an event."""
    resource = SimpleNamespace(id=OUTPUT)
    context = {"event": SimpleNamespace(payload=payload, resource=resource), "flow_run": None}
    message = MESSAGES[incident]

    async def render() -> tuple[str, str]:
        subject = await render_user_template(message.subject, context)
        return subject, await render_user_template(message.body, context)

    return asyncio.run(render())


def test_the_message_about_a_failed_backfill() -> None:
    subject, body = text_of(
        "failed",
        job="revenue",
        backfill="b1",
        message="backfill b1 ended with 2 of 6 windows failed",
        notes=["2 windows of run r1 failed (2024-03-01, 2024-03-02): no price"],
        hint="see why: …",
        command=f"chunkmap backfill status b1 -o {OUTPUT}",
    )
    assert subject == "revenue failed"
    assert body.splitlines() == [
        "backfill b1 ended with 2 of 6 windows failed",
        "2 windows of run r1 failed (2024-03-01, 2024-03-02): no price",
        "see why: …",
        f"output {OUTPUT}; see chunkmap backfill status b1 -o {OUTPUT}",
    ]


def test_the_message_about_quarantine() -> None:
    command = f"chunkmap status r1 -o {OUTPUT}"
    found = {"rows": ["s3://q/rows.parquet"], "objects": ["s3://in/bad.parquet"]}
    subject, body = text_of("quarantined", job="revenue", command=command, **found)
    assert subject == "revenue: rows or objects in quarantine"
    assert "s3://q/rows.parquet s3://in/bad.parquet" in body
    assert command in body


def test_mail_arrives(tmp_path: Path) -> None:
    with mail_server() as (port, mails):
        url = f"mailto://127.0.0.1:{port}?from=ops@example.org&to=me@example.org&mode=insecure"
        block, *_ = resources(tmp_path, "apprise", url)
        slug = block.name.partition("/")[0]
        sender: Any = BLOCKS[slug](**block.fields)
        sender.notify(body="no price", subject="revenue failed")
    [mail] = mails
    message = email.message_from_string(mail)
    assert (message["Subject"], message["To"]) == ("revenue failed", "me@example.org")
    assert "no price" in mail


@pytest.mark.parametrize(
    ("kind", "url", "service"),
    [
        ("slack", SLACK, "slack"),
        ("apprise", SLACK, "slack"),
        ("teams", TEAMS, "power_automate"),
        ("apprise", "pagerduty://A1BRTD4JDA1BRTD4JD@T1JJ3T3L2T1JJ3T3L2", "pager_duty"),
    ],
)
def test_each_kind_has_a_service_behind_it(
    tmp_path: Path, kind: str, url: str, service: str
) -> None:
    block, *automations = resources(tmp_path, kind, url)
    assert block.fields == {"url": url}
    assert len(automations) == len(MESSAGES)
    found: Any = Apprise.instantiate(url)
    assert found.service_name.lower().replace(" ", "_").startswith(service)


@pytest.mark.parametrize(
    ("kind", "url"),
    [("apprise", "hush-hush"), ("slack", "hush"), ("teams", SLACK), ("webhook", "ftp://hush")],
)
def test_what_nothing_can_be_sent_to_is_refused(tmp_path: Path, kind: str, url: str) -> None:
    with pytest.raises(DeployFileError, match="variable OPS_URL holds no URL") as error:
        resources(tmp_path, kind, url)
    assert url not in f"{error.value} {error.value.hint}"


def test_all_ways_to_fail_are_reported_and_all_ends_are_recoveries() -> None:
    failed = set(MESSAGES["failed"].expect)
    kinds = ("run", "backfill", "ingest", "load", "pipeline")
    assert {f"chunkmap.{kind}.failed" for kind in (*kinds, "deadline", "sweep")} <= failed
    recovered = MESSAGES["recovered"]
    assert set(recovered.expect) == {f"chunkmap.{kind}.completed" for kind in kinds}
    assert failed | {"chunkmap.run.died", "chunkmap.output.late"} <= set(recovered.after)
