"""The flow `load`: a published output into a database, a Delta table or an endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

from prefect import flow

from pipeline.config.load_file import LoadInto, parse_load_file
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import ChunkmapError
from pipeline.flows.lineage import lineage
from pipeline.flows.lineage_facts import facts_of_load
from pipeline.flows.run_events import LOAD, reported
from pipeline.flows.run_logs import flow_logs
from pipeline.flows.secret_blocks import read_secret_block
from pipeline.load.connect import open_load
from pipeline.load.records import Listener, LoadProgress, LoadSummary
from pipeline.masking import mask_text
from pipeline.storage import open_storage


def _ignore(progress: LoadProgress) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class LoadOptions:
    """Arguments of the flow that Prefect need not store."""

    settings: Settings
    listen: Listener = _ignore
    ended: list[LoadSummary | ChunkmapError] = field(default_factory=list)
    """The summary or error of the load, added when it ends, even if Prefect fails afterwards."""


_options: ContextVar[LoadOptions | None] = ContextVar("load_options", default=None)


@contextmanager
def load_options(options: LoadOptions) -> Iterator[None]:
    """Run the flow with these options; without them, it takes the settings of the environment."""
    token = _options.set(options)
    try:
        yield
    finally:
        _options.reset(token)


@flow(
    name="load",
    flow_run_name="{name}",
    persist_result=False,
    result_serializer="json",
    validate_parameters=False,
)
def load_flow(name: str, load_yaml: str) -> LoadSummary:
    """Load what a destination lacks of a published output; run it again to load what is new.

    Args:
        name: The name of the load, for the Prefect UI.
        load_yaml: The text of the load file. It holds no password.

    Raises:
        ChunkmapError: See `pipeline.load.errors`; what is committed stays loaded.
    """
    current = _options.get() or LoadOptions(load_settings())
    settings = current.settings
    try:
        with flow_logs():
            file = parse_load_file(load_yaml)
            about = {"job": file.name, "output": file.input.uri}
            with reported(LOAD, destination_of(file.into), about) as complete:
                secret = secret_of(file.into)
                storage = open_storage(settings)
                load = open_load(file, settings, storage, current.listen, secret)
                facts = partial(facts_of_load, file, storage)
                with lineage(settings.lineage, storage, facts) as done:
                    summary = load.run()
                    done(summary)
                complete(summary)
    except ChunkmapError as error:
        current.ended.append(error)
        raise
    current.ended.append(summary)
    return summary


def destination_of(into: LoadInto) -> str:
    """Return the name of a destination: its URI, of a database with the table after a `#`."""
    return mask_text(into.uri) + (f"#{into.table}" if into.table else "")


def secret_of(into: LoadInto) -> str | None:
    """Return the secret in the Secret block that a load file names; None if it names none.

    Raises:
        UsageError: There is no such block, or it holds no text.
    """
    if into.secret_block is None:
        return None
    key = "into.password_block" if into.password_block else "into.http.auth.secret"
    return read_secret_block(into.secret_block, key)
