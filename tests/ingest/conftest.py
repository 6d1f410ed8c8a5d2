"""An API with pages, and ingests of it into memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pytest

from pipeline.config.ingest import Ingest
from pipeline.config.settings import Settings
from pipeline.http_answers import Waits
from pipeline.ingest import IngestOptions, IngestSummary, ingest
from pipeline.storage import Storage
from pipeline.table.log import TableLog
from tests.servers.api import Api, serving
from tests.support.faulty_storage import Fault, Faulty, KilledError, dies_at
from tests.support.memory_storage import AT_ONCE, MemoryBackend
from tests.support.outputs import copied

OUTPUT = "s3://out/t/"
FAST = Waits(0.001, 0.002)
PAGES: dict[str, dict[str, Any]] = {
    "page": {"by": "page"},
    "page-of-total": {"by": "page", "size": 10, "size_parameter": "n", "total": "meta.total"},
    "page-to-last": {"by": "page", "last": "meta.pages"},
    "offset": {"by": "offset"},
    "cursor": {"by": "cursor", "parameter": "after", "path": "meta.next"},
    "link": {"by": "link"},
}


def orders(count: int) -> list[dict[str, Any]]:
    return [
        {"id": i, "price": i / 2, "name": f"n{i % 3}", "paid": i % 2 == 0} for i in range(count)
    ]


@dataclass
class World:
    """An API, and an output in memory."""

    api: Api
    backend: MemoryBackend = field(default_factory=MemoryBackend)
    settings: Settings | None = None

    def definition(self, **changes: Any) -> Ingest:
        """The definition of an ingest of the API; nested keys as dicts."""
        data: dict[str, Any] = {"name": "orders", "output": {"uri": OUTPUT}}
        if not {"files", "sql", "source"} & set(changes):
            data["http"] = {"url": self.api.url, "records": "data"}
        for key, value in changes.items():
            data[key] = {**data[key], **value} if isinstance(data.get(key), dict) else value
        if "pages" not in data.get("http", {"pages": None}):
            data["http"]["pages"] = PAGES[self.api.by]
        return Ingest.model_validate(data)

    def dies(self, number: int, fault: Fault = "before", **changes: Any) -> list[str]:
        """Ingest in a process that ends at a request of storage; returns what was called."""
        dying = Faulty(self.backend, dies_at(number, fault), KilledError)
        with pytest.raises(KilledError):
            self.ingest(Storage({"s3": dying}, AT_ONCE), **changes)
        return dying.calls

    def calls(self, **changes: Any) -> list[str]:
        """Requests of storage of an ingest, which changes nothing here."""
        counted = Faulty(copied(self.backend), lambda n, name: None)
        self.ingest(Storage({"s3": counted}, AT_ONCE), **changes)
        return counted.calls

    def forget(self) -> None:
        """Empty the storage."""
        self.backend.stored.clear()
        self.backend.uploads.clear()

    def ingest(
        self,
        storage: Storage | None = None,
        options: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> IngestSummary:
        how = IngestOptions(**{"waits": FAST, **(options or {})})
        return ingest(
            self.definition(**changes),
            self.settings,
            how,
            storage=storage or self.backend.storage(),
        )

    @property
    def table_log(self) -> TableLog:
        return TableLog(self.backend.storage(), OUTPUT)

    def frame(self) -> pl.DataFrame:
        """The rows that the current manifest names, by id."""
        log = self.table_log
        files = log.snapshot(log.manifest())
        frames = [
            pl.read_parquet(io.BytesIO(self.backend.get(OUTPUT + key).data))
            for key in files["key"].to_list()
        ]
        return pl.concat(frames).sort("id") if frames else pl.DataFrame()

    def state(self, part: str) -> list[str]:
        """Names of the objects of ingests that contain a text."""
        prefix = f"{OUTPUT.rstrip('/')}.chunkmap/ingests/"
        return sorted(
            uri.removeprefix(prefix)
            for uri in self.backend.stored
            if uri.startswith(prefix) and part in uri
        )


@pytest.fixture
def world() -> Iterator[Callable[..., World]]:
    """Makes worlds with an API."""
    opened = []

    def make(count: int = 35, **more: Any) -> World:
        serve = serving(Api(orders(count), **more))
        api = serve.__enter__()
        opened.append(serve)
        return World(api)

    yield make
    for serve in opened:
        serve.__exit__(None, None, None)
