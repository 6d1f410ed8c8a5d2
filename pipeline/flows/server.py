"""Reach the Prefect server: check it, connect to it, and configure Prefect's client."""

from __future__ import annotations

import base64
import logging
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

from cachetools import LRUCache, cached

from pipeline.config.sections import PrefectSettings
from pipeline.errors import EngineUnavailableError

HEARTBEAT_SECONDS = 30
"""Seconds between two heartbeats of a flow run."""
_START_SERVER = "start one with `chunkmap up`, or set PREFECT_API_URL"


def check_server(settings: PrefectSettings) -> str:
    """Wait until the server answers; returns the address of its API.

    Raises:
        EngineUnavailableError: No address is set, or no server answers there in time.
    """
    if settings.api_url is None:
        raise no_server()
    deadline = time.monotonic() + settings.connect_timeout
    problem: object = "no answer"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(settings.api_url + "/health", timeout=3) as answer:
                if answer.status == 200:
                    return settings.api_url
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}"
            break  # Another service than Prefect answers: waiting will not help.
        except OSError as error:
            problem = error
            time.sleep(0.3)
    raise EngineUnavailableError(
        f"no Prefect server answers at {settings.api_url} (prefect.api_url) within "
        f"{settings.connect_timeout:g} s: {problem}",
        hint=_START_SERVER,
    )


def no_server() -> EngineUnavailableError:
    """Return the error of settings that name no server."""
    return EngineUnavailableError("no Prefect server is set (prefect.api_url)", _START_SERVER)


def connect(settings: PrefectSettings) -> str:
    """Point this process's Prefect at the server; returns the API's address.

    Raises:
        EngineUnavailableError: No server answers there.
    """
    api_url = check_server(settings)
    # Set before prefect is imported, and inherited by child processes: without the address, a
    # process would start its own server.
    os.environ.update(settings.environment())
    from prefect.logging.configuration import ensure_logging_setup

    ensure_logging_setup()
    for handler in logging.getLogger().handlers:
        # The flow's logs go to the server; the terminal is for the progress bar.
        if type(handler).__name__ == "PrefectConsoleHandler":
            handler.setLevel(logging.CRITICAL + 1)
    _check_password(api_url)
    return api_url


def check_access(settings: PrefectSettings) -> None:
    """Check that the server answers and takes the password, without loading Prefect if it does.

    Raises:
        EngineUnavailableError: No server answers, or it refuses the password or requires one.
    """
    api_url, password = check_server(settings), settings.auth_string
    if _is_refused(api_url, password.get_secret_value() if password else None):
        connect(settings)  # A profile of Prefect may have a password that is accepted.


def _check_password(api_url: str) -> None:
    """Raise EngineUnavailableError if the server refuses the password that Prefect would send."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY

    if PREFECT_API_KEY.value() is not None:
        return  # Prefect Cloud.
    # If Prefect was imported before `connect`, its settings lack the password.
    password = os.environ.get("PREFECT_API_AUTH_STRING") or PREFECT_API_AUTH_STRING.value()
    if _is_refused(api_url, password):
        problem = "refuses the password" if password else "requires a password"
        raise EngineUnavailableError(
            f"the Prefect server at {api_url} {problem} (prefect.auth_string)",
            "set PREFECT_API_AUTH_STRING; the password of the local stack is in the file "
            "prefect-password of its state folder",
        )


def _is_refused(api_url: str, password: str | None) -> bool:
    """Whether the server refuses requests with this password, or with none.

    Servers without that page refuse them later, in Prefect's own requests.
    """
    request = urllib.request.Request(api_url + "/admin/version")
    if password:
        encoded = base64.b64encode(password.encode()).decode("ascii")
        request.add_header("Authorization", f"Basic {encoded}")
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return False  # It has just answered; if it is down for longer, the run reports it.
    return False


def drain(seconds: float) -> bool:
    """Send Prefect's pending logs and events; returns whether all were sent in time.

    Otherwise, with an unavailable server, each event would delay the interpreter's exit by 7 s.
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
    _forget_stopped_services()
    return True


def _forget_stopped_services() -> None:
    """Let go of Prefect's services that have stopped, which it keeps until the process ends.

    Each has the context of the flow run that started it, with all that the run has in memory, and a
    client. A process that makes many runs would grow by 2.4 MB with each.
    """
    from prefect._internal.concurrency.threads import get_global_loop

    exits: list[Any] = getattr(threading, "_threading_atexits", [])
    for call in [call for call in exits if _is_of_stopped(getattr(call, "func", None))]:
        exits.remove(call)
    calls: list[Any] = getattr(get_global_loop(), "_on_shutdown", [])
    for shutdown in [call for call in calls if _is_of_stopped(call.fn)]:
        calls.remove(shutdown)


def _is_of_stopped(method: object) -> bool:
    service = getattr(method, "__self__", None)
    return hasattr(type(service), "drain_all") and getattr(service, "_stopped", False) is True


@contextmanager
def talking_to(api_url: str, retries: int, *, beats: bool = False) -> Iterator[None]:
    """Let Prefect's client use this server in the block.

    This works even if Prefect was imported, and read its settings, before the address was known;
    otherwise it would start its own server.

    Args:
        api_url: The address of the server's API.
        retries: The maximum number of retries of a request.
        beats: Whether flow runs send heartbeats, by which an automation notices a dead driver
            (see `pipeline.flows.automations`). Each flow run then takes up to a second longer.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
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
        settings[heartbeat] = None  # The user has not enabled them.
    with _prefect_settings(settings), _shared_client(api_url, password or ""):
        yield


@contextmanager
def _shared_client(api_url: str, password: str) -> Iterator[None]:
    """Let flow runs of the block use one client of this process.

    Prefect makes one per flow run, which takes a request and 30 ms of processor time, most of it
    for the certificates of authorities.
    """
    from prefect.context import SyncClientContext

    context = SyncClientContext.model_construct(client=_client(api_url, password))
    token = SyncClientContext.__var__.set(context)
    try:
        yield
    finally:
        SyncClientContext.__var__.reset(token)


@cached(LRUCache(maxsize=4), lock=Lock())
def _client(api_url: str, password: str) -> Any:
    """Return the client for the current settings, which name this address and password."""
    from prefect.client.orchestration import get_client

    from pipeline.flows.busy_server import PatientTransport

    client: Any = get_client(sync_client=True)
    # Only now: httpx makes a transport for the settings if it is given none.
    client._client._transport = PatientTransport(client._client._transport)
    return client.__enter__()  # Never exited: it is kept.


def own_client_options() -> dict[str, Any]:
    """Return options of httpx by which `get_client` makes another client, but no TLS context.

    Prefect makes one per client, which takes 25 ms of processor time for the certificates of
    authorities, whether the server has TLS or not.
    """
    from prefect.settings import PREFECT_API_SSL_CERT_FILE, PREFECT_API_TLS_INSECURE_SKIP_VERIFY

    if PREFECT_API_TLS_INSECURE_SKIP_VERIFY.value():
        return {}
    return {"verify": _tls_context(PREFECT_API_SSL_CERT_FILE.value())}


@cached(LRUCache(maxsize=4), lock=Lock())
def _tls_context(certificates: str | None) -> ssl.SSLContext:
    import httpx

    if certificates:
        return ssl.create_default_context(cafile=certificates)
    return httpx.create_ssl_context()  # With the authorities that Prefect uses by default, too.


@contextmanager
def _prefect_settings(updates: Mapping[Any, Any]) -> Iterator[None]:
    """Change settings of Prefect in the block, as its `temporary_settings` does.

    Prefect reads the environment and its profiles for each change, which takes a tenth of a second:
    the result is kept for the next block.
    """
    from prefect.context import SettingsContext, get_settings_context

    context = get_settings_context()
    _, settings = _change_settings(context.settings, tuple(updates.items()))
    with SettingsContext(profile=context.profile, settings=settings):
        yield


def _by_identity(settings: Any, updates: tuple[tuple[Any, Any], ...]) -> Hashable:
    # To hash Prefect's settings takes longer than to change them.
    return (id(settings), *((setting.name, value) for setting, value in updates))


@cached(LRUCache(maxsize=16), key=_by_identity, lock=Lock())
def _change_settings(settings: Any, updates: tuple[tuple[Any, Any], ...]) -> tuple[Any, Any]:
    """Return settings before and after a change: those before stay alive, and so does their id."""
    return settings, settings.copy_with_update(updates=dict(updates))


@contextmanager
def patient(retries: int) -> Iterator[None]:
    """Set the number of retries of Prefect's client, for requests that the run depends on."""
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES

    with _prefect_settings({PREFECT_CLIENT_MAX_RETRIES: retries}):
        yield


def flow_run_page() -> str | None:
    """Return the address of the current flow run in the Prefect UI; None outside a flow run."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None
    return f"{ui_address(str(context.client.api_url))}/runs/flow-run/{context.flow_run.id}"


def ui_address(api_url: str) -> str:
    """Return the address of the Prefect UI: PREFECT_UI_URL, or else the server's."""
    ui_url = os.environ.get("PREFECT_UI_URL", "").rstrip("/")
    return ui_url or api_url.rstrip("/").removesuffix("/api")
