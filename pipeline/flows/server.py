"""Reaching the Prefect server, before anything is promised to the user."""

from __future__ import annotations

import base64
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config.sections import PrefectSettings
from pipeline.errors import EngineUnavailableError

HEARTBEAT_SECONDS = 30
"""How often a flow run that is watched says that it is alive."""


def check_server(settings: PrefectSettings) -> str:
    """The API's address, once it has answered.

    Raises:
        EngineUnavailableError: there is no address, or nothing answers there in time.
    """
    hint = "start one with `chunkmap up`, or set PREFECT_API_URL"
    if settings.api_url is None:
        raise EngineUnavailableError("no Prefect server is set (prefect.api_url)", hint=hint)
    deadline = time.monotonic() + settings.connect_timeout
    problem: object = "no answer"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(settings.api_url + "/health", timeout=3) as answer:
                if answer.status == 200:
                    return settings.api_url
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}"
            break  # Somebody answers, but not as Prefect does: waiting will not help.
        except OSError as error:
            problem = error
            time.sleep(0.3)
    raise EngineUnavailableError(
        f"no Prefect server answers at {settings.api_url} (prefect.api_url) within "
        f"{settings.connect_timeout:g} s: {problem}",
        hint=hint,
    )


def connect(settings: PrefectSettings) -> str:
    """Point this process's Prefect at the server; returns the API's address.

    Raises:
        EngineUnavailableError: nothing answers there.
    """
    api_url = check_server(settings)
    # Before prefect is imported, and inherited by whatever this process starts: a process that
    # does not know the address starts a server of its own.
    os.environ.update(settings.environment())
    from prefect.logging.configuration import ensure_logging_setup

    ensure_logging_setup()
    for handler in logging.getLogger().handlers:
        # The flow's logs go to the server; the terminal belongs to the progress bar.
        if type(handler).__name__ == "PrefectConsoleHandler":
            handler.setLevel(logging.CRITICAL + 1)
    _check_password(api_url)
    return api_url


def _check_password(api_url: str) -> None:
    """Raise EngineUnavailableError when the server refuses the password that Prefect would send.

    Servers without that page are left to say it themselves.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY

    if PREFECT_API_KEY.value() is not None:
        return  # Of Prefect Cloud.
    # Where Prefect was imported before, its settings do not know what `connect` found.
    given = os.environ.get("PREFECT_API_AUTH_STRING") or PREFECT_API_AUTH_STRING.value()
    request = urllib.request.Request(api_url + "/admin/version")
    if given:
        encoded = base64.b64encode(given.encode()).decode("ascii")
        request.add_header("Authorization", f"Basic {encoded}")
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            return
        problem = "does not take the password that is set" if given else "asks for a password"
        raise EngineUnavailableError(
            f"the Prefect server at {api_url} {problem} (prefect.auth_string)",
            "set PREFECT_API_AUTH_STRING; the embedded stack's is in the file prefect-password of "
            "its state folder",
        ) from error
    except OSError:
        return  # It answered a moment ago; if it is gone for good, the run says so.


def drain(seconds: float) -> bool:
    """Send what Prefect still has to say (logs, events); whether it all went out in time.

    With the server gone each event would wait for about 7 s when the interpreter ends.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    from pipeline.flows.event_sender import flush_events

    deadline = time.monotonic() + seconds
    if not flush_events(seconds):
        return False
    for worker in (EventsWorker, APILogWorker):
        left = worker.drain_all(timeout=max(0.1, deadline - time.monotonic()))
        if isinstance(left, tuple) and left[1]:
            return False
    return True


@contextmanager
def talking_to(api_url: str, retries: int, *, beats: bool = False) -> Iterator[None]:
    """Let Prefect's client talk to this server.

    Also where Prefect was imported, and took its settings, before the address was known: it would
    start a server of its own.

    Args:
        api_url: Of the server.
        retries: How often a request is repeated at most.
        beats: Flow runs send heartbeats, by which an automation notices that a driver has died
            (see `pipeline.flows.automations`). Each then takes up to a second longer to end.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    heartbeat = PREFECT_FLOWS_HEARTBEAT_FREQUENCY
    settings = {
        PREFECT_API_URL: api_url,
        PREFECT_CLIENT_MAX_RETRIES: min(retries, PREFECT_CLIENT_MAX_RETRIES.value()),
    }
    password = os.environ.get("PREFECT_API_AUTH_STRING")
    if password:
        settings[PREFECT_API_AUTH_STRING] = password
    if beats:
        settings[heartbeat] = HEARTBEAT_SECONDS
    elif heartbeat.value() == heartbeat.default():
        settings[heartbeat] = None  # The user has not asked for them.
    with temporary_settings(settings):
        yield


@contextmanager
def patient(retries: int) -> Iterator[None]:
    """Let Prefect's client repeat a request this often, where the run depends on its answer."""
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: retries}):
        yield


def flow_run_page() -> str | None:
    """The page of the flow run that this runs in; None outside of one."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None
    return f"{ui_address(str(context.client.api_url))}/runs/flow-run/{context.flow_run.id}"


def ui_address(api_url: str) -> str:
    """The address of the pages for people: PREFECT_UI_URL, where they have another one."""
    given = os.environ.get("PREFECT_UI_URL", "").rstrip("/")
    return given or api_url.rstrip("/").removesuffix("/api")
