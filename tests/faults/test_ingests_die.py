"""The driver of an ingest is killed: while it fetches, stores, stages and publishes.

The table in docs/guides/ingest.md has a row for each of STAGES.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.config.ingest import Ingest
from pipeline.http_answers import Waits
from pipeline.ingest import IngestOptions, IngestSummary, ingest
from pipeline.runs.admin.vacuum import vacuum
from pipeline.storage import Storage
from pipeline.storage.local_backend import LocalBackend
from pipeline.table.log import TableLog
from tests.servers.api import Api, serving
from tests.support.faulty_storage import Fault, Faulty
from tests.support.memory_storage import AT_ONCE

pytestmark = pytest.mark.faults
ROWS, PAGES = 35, 4
NOTED = "a staged file is noted"
STAGES = {
    "a page is stored": ("put_new", "pages/"),
    "a file is staged": ("stage", ""),
    NOTED: ("put_new", "files/"),
    "the commit is recorded": ("put_new", "commits/"),
    "files become visible": ("complete", ""),
    "the pointer moves": ("put_if", ""),
}
"""Requests of storage, by their name and a part of the object's, at which the driver is killed."""


@pytest.fixture(scope="module", autouse=True)
def inhabitant() -> None:
    """These tests need no services."""


class Drivers:
    """Starts drivers that die."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.dying_ingests"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, definition: Ingest, number: int, fault: Fault = "before") -> int:
        """Start one; returns the id of its process."""
        assert self._process.stdin is not None
        line = [definition.model_dump(mode="json", by_alias=True), number, fault]
        print(json.dumps(line), file=self._process.stdin, flush=True)
        return int(self._read())

    def wait(self) -> int:
        """Wait for its end; returns its exit code."""
        return int(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def close(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture(scope="module")
def drivers() -> Iterator[Drivers]:
    started = Drivers()
    yield started
    started.close()


class Shop:
    """An API, and outputs on disk."""

    def __init__(self, api: Api, folder: Path) -> None:
        self.api, self.folder = api, folder

    def definition(self, name: str) -> Ingest:
        pages = {"by": "cursor", "parameter": "after", "path": "meta.next"}
        http: dict[str, Any] = {"url": self.api.url, "records": "data", "pages": pages}
        output = {"uri": f"file://{self.folder}/{name}/", "mode": "append"}
        return Ingest.model_validate({"name": "orders", "http": http, "output": output})

    def finish(self, definition: Ingest) -> IngestSummary:
        """Give the same command again."""
        storage = Storage({"file": LocalBackend()}, AT_ONCE)
        return ingest(definition, options=IngestOptions(waits=Waits(0.001, 0.002)), storage=storage)

    def check(self, definition: Ingest) -> int:
        """Everything is there once, by the table and a glob. Returns the objects staged besides."""
        prefix = definition.output.uri.removeprefix("file://")
        frame = pl.read_parquet(f"{prefix}**/*.parquet").sort("id")
        assert frame["id"].to_list() == list(range(ROWS))
        storage = Storage({"file": LocalBackend()}, AT_ONCE)
        log = TableLog(storage, definition.output.uri)
        assert log.snapshot(log.manifest())["rows"].sum() == ROWS
        assert self.finish(definition).already
        left = len(list(storage.staged_under(log.output, log.state + "staged/")))
        vacuum(storage, log.output, older_than=-10.0)
        assert not list(storage.staged_under(log.output, log.state + "staged/"))
        return left


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with serving(Api([{"id": i, "name": f"n{i}"} for i in range(ROWS)], by="cursor")) as api:
        yield Shop(api, tmp_path_factory.mktemp("shop"))


class _Named(Faulty):
    """Counts requests with the objects that they name."""

    def __init__(self) -> None:
        super().__init__(LocalBackend(), lambda number, name: None)
        self.named: list[tuple[str, str]] = []

    def put_new(self, uri: str, data: bytes) -> None:
        self.named.append((str(len(self.calls)), uri))
        super().put_new(uri, data)


@pytest.fixture(scope="module")
def requests(shop: Shop) -> list[tuple[str, str]]:
    """Name and object of each request of an ingest; objects of those that create one only."""
    backend = _Named()
    definition = shop.definition("counted")
    ingest(definition, storage=Storage({"file": backend}, AT_ONCE))
    names = dict(backend.named)
    return [(name, names.get(str(number), "")) for number, name in enumerate(backend.calls)]


def _number(requests: list[tuple[str, str]], stage: str) -> int:
    """Number of the request of a stage: of the second page, or else the first."""
    wanted, part = STAGES[stage]
    found = [n for n, (name, uri) in enumerate(requests) if name == wanted and part in uri]
    return found[1 if part == "pages/" else 0]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_driver_that_is_killed_is_followed_by_the_same_command(
    drivers: Drivers,
    shop: Shop,
    requests: list[tuple[str, str]],
    stage: str,
    fault: Fault,
) -> None:
    definition = shop.definition(f"{stage}-{fault}".replace(" ", "-"))
    before = len(shop.api.queries)
    drivers.start(definition, _number(requests, stage), fault)
    assert drivers.wait() == -signal.SIGKILL
    asked = len(shop.api.queries) - before
    summary = shop.finish(definition)
    again = len(shop.api.queries) - before - asked
    if stage == "a page is stored":
        assert (asked, again) == (2, 3 if fault == "before" else 2)
    else:
        assert (asked, again) == (PAGES, 0)
    assert summary.already == (stage == "the pointer moves" and fault == "after")
    # A staged object without a note is left to `vacuum`.
    is_unnoted = (stage, fault) in (("a file is staged", "after"), (NOTED, "before"))
    assert shop.check(definition) == is_unnoted


def test_a_driver_that_is_killed_while_a_page_is_fetched(drivers: Drivers, shop: Shop) -> None:
    definition = shop.definition("fetched")
    asked, killed = threading.Event(), threading.Event()

    def script(query: str, times: int) -> None:
        if "after=c20" in query and not killed.is_set():
            asked.set()
            killed.wait(30)

    before = len(shop.api.queries)
    shop.api.script = script
    try:
        process = drivers.start(definition, -1)
        assert asked.wait(30)
        os.kill(process, signal.SIGKILL)
        assert drivers.wait() == -signal.SIGKILL
    finally:
        killed.set()
        shop.api.script = lambda query, times: None
    summary = shop.finish(definition)
    assert (summary.asked, summary.pages) == (2, PAGES)
    assert len(shop.api.queries) - before == 3 + 2
    assert shop.check(definition) == 0
