"""Reaching the Prefect server, before anything is promised to the user."""

from __future__ import annotations

import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import EngineUnavailableError
from pipeline.settings import PrefectSettings


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
    os.environ["PREFECT_API_URL"] = api_url
    from prefect.logging.configuration import setup_logging

    setup_logging()
    for handler in logging.getLogger().handlers:
        # The flow's logs go to the server; the terminal belongs to the progress bar.
        if type(handler).__name__ == "PrefectConsoleHandler":
            handler.setLevel(logging.CRITICAL + 1)
    return api_url


def drain(seconds: float) -> bool:
    """Send what Prefect still has to say (logs, events); whether it all went out in time.

    With the server gone each event would wait for about 7 s when the interpreter ends.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        left = worker.drain_all(timeout=seconds)
        if isinstance(left, tuple) and left[1]:
            return False
    return True


@contextmanager
def few_retries(most: int) -> Iterator[None]:
    """Let Prefect's client repeat a request this often at most."""
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    few = min(most, PREFECT_CLIENT_MAX_RETRIES.value())
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: few}):
        yield


def ui_address(api_url: str) -> str:
    """The address of the pages for people."""
    return api_url.rstrip("/").removesuffix("/api")
