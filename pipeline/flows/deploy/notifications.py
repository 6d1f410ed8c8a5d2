"""Notify people of incidents: a block per receiver, and an automation per incident.

The server sends the messages, so they come even when the driver is dead.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from apprise import Apprise
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from pipeline.config.deploy_file import Deployed, Notify
from pipeline.errors import DeployFileError
from pipeline.flows.deploy.kinds import BLOCKS, UNKNOWN, automation_resource
from pipeline.flows.deploy.resources import Resource
from pipeline.flows.run_events import (
    BACKFILL,
    DIED,
    EVENT_KINDS,
    LATE,
    QUARANTINED,
    RUN,
    WATCH_KINDS,
)

RECOVERY_TIME = timedelta(days=30)
"""How long after a failure a completed run counts as its recovery."""
WATCHED_FLOWS = (
    "chunkmap",
    "map_dataset",
    "backfill",
    "windows",
    "resume",
    "ingest",
    "load",
    "pipeline",
    "deadline",
    "sweep",
)
"""Flows whose crashes are reported."""
SLUGS = {
    "slack": "slack-webhook",
    "teams": "ms-teams-webhook",
    "webhook": "custom-webhook",
    "apprise": "slack-webhook",  # Its URL may be any that Apprise knows.
}
"""Slugs of blocks, by the kinds of receivers."""
_FAILED = (*(f"{kind}.failed" for kind in (*EVENT_KINDS, *WATCH_KINDS)), f"{BACKFILL}.held")
_DIED = (f"{RUN}.{DIED}", f"{BACKFILL}.{DIED}")
_DONE = tuple(f"{kind}.completed" for kind in EVENT_KINDS)
_OUTPUT = "{{ event.resource.id }}"
_NAME = "{{ event.payload.job or event.payload.backfill }}"
_MORE = f"output {_OUTPUT}; see {{{{ event.payload.command }}}}"
"""Output, and the command that shows more."""
_LINK = "{% if flow_run %}{{ flow_run|ui_url or '' }}{% endif %}"
"""Address of the flow run; empty where the server does not know that of its pages."""


class Message(NamedTuple):
    """What triggers a message, and its text."""

    expect: tuple[str, ...]
    subject: str
    body: str
    after: tuple[str, ...] = ()


MESSAGES = {
    "failed": Message(
        _FAILED,
        f"{_NAME} failed",
        "{{ event.payload.message }}\n{{ event.payload.notes|join('\n') }}\n"
        f"{{{{ event.payload.hint }}}}\n{_MORE}\n{_LINK}",
    ),
    "crashed": Message(
        ("prefect.flow-run.Crashed", "prefect.flow-run.Silent"),
        "{{ flow_run.name }} crashed",
        "Its process died or was silent; finished work is kept.\n"
        f"See what is left: chunkmap status -o OUTPUT; run it again to resume.\n{_LINK}",
    ),
    "quarantined": Message(
        (QUARANTINED,),
        f"{_NAME}: rows or objects in quarantine",
        "{{ event.payload.rows|join(' ') }} {{ event.payload.objects|join(' ') }}\n"
        f"{_MORE}\n{_LINK}",
    ),
    "late": Message(
        (LATE,),
        f"{_NAME} is late",
        "{{ event.payload.message }}\n"
        f"output {_OUTPUT}; see why: chunkmap status -o {_OUTPUT}, chunkmap history {_OUTPUT}",
    ),
    "recovered": Message(
        _DONE, f"{_NAME} is done again", f"output {_OUTPUT}\n{_LINK}", (*_FAILED, *_DIED, LATE)
    ),
}
"""Messages by incident."""


def notification_resources(deployed: Deployed) -> list[Resource]:
    """Return the blocks and automations of an environment's receivers."""
    resources = []
    for name, notify in deployed.notify.items():
        block = f"chunkmap-{deployed.environment.replace('_', '-')}-{name}"
        slug, fields = _block(notify, name, deployed.secret(notify.env))
        resources.append(Resource("block", f"{slug}/{block}", fields))
        for incident in notify.on:
            title = f"chunkmap {deployed.environment}: notify {name}: {incident}"
            resources.append(
                automation_resource(_automation(title, MESSAGES[incident]), f"{slug}/{block}")
            )
    return resources


def _block(notify: Notify, name: str, url: str) -> tuple[str, dict[str, Any]]:
    """Return the slug of the receiver's block, and its values.

    Raises:
        DeployFileError: No message can be sent to the URL. It is not shown: it may hold a secret.
    """
    slug = SLUGS[notify.kind]
    if not _is_usable(slug, url):
        raise DeployFileError(
            f"notify.{name}: the variable {notify.env} holds no URL for messages of the kind "
            f"{notify.kind}",
            hint="e.g. mailto://user:password@example.org or pagerduty://KEY@API_KEY; for slack "
            "and teams, the URL of an incoming webhook; for webhook, https://…",
        )
    if notify.kind != "webhook":
        return slug, {"url": url}
    return slug, {
        "name": name,
        "url": "{{url}}",
        "method": "POST",
        "json_data": {"subject": "{{subject}}", "body": "{{body}}"},
        "secrets": {"url": url},
    }


def _is_usable(slug: str, url: str) -> bool:
    """Whether a block of that kind can send messages to a URL; sends none."""
    if slug == SLUGS["webhook"]:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    try:
        BLOCKS[slug](url=url)
    except ValueError:
        return False
    # Prefect makes blocks of URLs that Apprise does not know, and then sends nothing.
    return Apprise.instantiate(url) is not None


def _automation(title: str, message: Message) -> AutomationCore:
    is_crash = message.expect == MESSAGES["crashed"].expect
    match = {"prefect.resource.id": "prefect.flow-run.*" if is_crash else "*"}
    related = {"prefect.resource.role": "flow", "prefect.resource.name": list(WATCHED_FLOWS)}
    return AutomationCore(
        name=title,
        description="Made by chunkmap deploy.",
        trigger=EventTrigger(
            after=set(message.after),
            expect=set(message.expect),
            match=ResourceSpecification(match),
            match_related=ResourceSpecification(related if is_crash else {}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=RECOVERY_TIME if message.after else timedelta(0),
        ),
        actions=[
            SendNotification(block_document_id=UNKNOWN, subject=message.subject, body=message.body)
        ],
    )
