"""OpenLineage events: what they say, and that they are what the specification asks for."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import duckdb
import jsonschema  # type: ignore[import-untyped]
import polars as pl
import pytest

from pipeline.config.ingest import Ingest
from pipeline.config.load_file import LoadFile
from pipeline.config.sections import LineageSettings
from pipeline.config.settings import load_settings
from pipeline.errors import ChunkmapError, RunCancelledError, UsageError
from pipeline.flows import lineage as module
from pipeline.flows.lineage import lineage
from pipeline.flows.lineage_facts import (
    LineageFacts,
    dataset_name,
    facts_of_ingest,
    facts_of_job,
    facts_of_load,
)
from pipeline.ingest.run import ingest
from pipeline.load.connect import open_load
from pipeline.runs.backfill.summary import BackfillSummary
from pipeline.runs.driver.summary import RunSummary
from pipeline.storage import own_storage
from tests.support.backfills import Days, days
from tests.support.memory_storage import MemoryBackend
from tests.support.published_frames import Frames
from tests.support.publishing import PLAN, publish
from tests.support.runs_by_hand import OUTPUT, Run, run_of

KEY = "planted-key-1234"
SCHEMA = json.loads((Path(__file__).parent / "openlineage.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(
    SCHEMA, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
)

pytest.importorskip("openlineage.client")


class Receiver:
    """A receiver of events on this machine."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.paths: list[tuple[str, str | None]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.events.append(json.loads(body))
                receiver.paths.append((self.path, self.headers["Authorization"]))
                self.send_response(201)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.settings = LineageSettings.model_validate(
            {"url": f"http://127.0.0.1:{self.server.server_port}", "api_key": KEY}
        )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver()
    thread = Thread(target=receiver.server.serve_forever, args=(0.02,))
    thread.start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()
    thread.join()


@pytest.fixture
def run() -> Run:
    run = run_of(MemoryBackend().storage(), PLAN, "append")
    run.complete()
    return run


def facts_of(run: Run) -> Callable[[], LineageFacts]:
    return lambda: facts_of_job("run", run.ledger.run, run.ledger.job(), run.plan, ())


def summary_of(run: Run, manifest: int) -> RunSummary:
    return RunSummary(
        run=run.ledger.run,
        job="test",
        state="done",
        output=OUTPUT,
        manifest=manifest,
        chunks=3,
        mapped=3,
        failed=0,
        batches=1,
        rounds=1,
        rows_in=6,
        rows_out=5,
        bytes_in=30,
        bytes_out=99,
        seconds=1.0,
        report="",
        local_report="",
    )


def bodies(receiver: Receiver) -> list[dict[str, Any]]:
    """The events, all of which are as the specification wants them."""
    for event in receiver.events:
        VALIDATOR.validate(event)
    return receiver.events


def test_a_run_that_completes(receiver: Receiver, run: Run) -> None:
    with lineage(receiver.settings, run.storage, facts_of(run)) as done:
        done(summary_of(run, publish(run)))
    started, completed = bodies(receiver)
    assert (started["eventType"], completed["eventType"]) == ("START", "COMPLETE")
    assert receiver.paths == [("/api/v1/lineage", f"Bearer {KEY}")] * 2
    assert started["run"]["runId"] == completed["run"]["runId"]
    tags = {each["key"]: each["value"] for each in completed["run"]["facets"]["tags"]["tags"]}
    assert tags["chunkmap.run"] == run.ledger.run
    assert (completed["job"]["namespace"], completed["job"]["name"]) == ("chunkmap", "test")
    [source] = started["inputs"]
    assert (source["namespace"], source["name"]) == ("s3://in", "t")
    assert source["facets"]["version"]["datasetVersion"] == run.plan.id
    fields = [(each["name"], each["type"]) for each in source["facets"]["schema"]["fields"]]
    assert fields == [("id", "Int64"), ("k", "Int64")]
    statistics = source["inputFacets"]["inputStatistics"]
    assert (statistics["rowCount"], statistics["fileCount"]) == (6, 3)
    assert started["outputs"][0]["facets"] == {}
    [output] = completed["outputs"]
    assert (output["namespace"], output["name"]) == ("s3://out", "t")
    assert output["facets"]["version"]["datasetVersion"] == "1"
    [field] = output["facets"]["schema"]["fields"]
    assert (field["name"], field["type"]) == ("id", "Int64")
    statistics = output["outputFacets"]["outputStatistics"]
    assert (statistics["rowCount"], statistics["size"]) == (5, 99)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("no; password=hush-1234"), "FAIL"),
        (RunCancelledError("cancelled"), "ABORT"),
        (KeyboardInterrupt(), "ABORT"),
    ],
)
def test_a_run_that_does_not(receiver: Receiver, run: Run, error: BaseException, kind: str) -> None:
    with (
        pytest.raises(type(error)),
        lineage(receiver.settings, run.storage, facts_of(run)),
    ):
        raise error
    started, failed = bodies(receiver)
    assert (started["eventType"], failed["eventType"]) == ("START", kind)
    said = failed["run"]["facets"].get("errorMessage", {}).get("message", "")
    assert said.startswith("" if isinstance(error, KeyboardInterrupt) else type(error).__name__)
    assert "hush" not in said


def test_a_backfill(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = Days(tmp_path)
    made.write(days("2024-03-08", 1))
    store = made.create(made.job())

    def facts() -> LineageFacts:
        return facts_of_job("backfill", store.backfill, store.job(), store.plan(), ())

    with lineage(receiver.settings, made.storage, facts) as done:
        summary = made.drive(store)
        assert isinstance(summary, BackfillSummary)
        done(summary)
    _, completed = bodies(receiver)
    [output] = completed["outputs"]
    assert (output["namespace"], output["name"]) == ("file", made.output)
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 10
    assert int(output["facets"]["version"]["datasetVersion"]) == made.manifest_numbers()
    names = {each["name"] for each in output["facets"]["schema"]["fields"]}
    assert names == {"id", "value", "twice"}


def test_an_ingest(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"id": 1, "name": "a"}\n{"id": 2, "name": "b"}\n')
    definition = Ingest.model_validate(
        {
            "name": "people",
            "files": {"uri": [f"{tmp_path}/in/*.jsonl"]},
            "output": {"uri": f"{tmp_path}/out/"},
        }
    )
    storage = own_storage()
    facts = partial(facts_of_ingest, definition, lambda place: None)
    with lineage(receiver.settings, storage, facts) as done:
        summary = ingest(definition, storage=storage)
        done(summary)
    started, completed = bodies(receiver)
    assert (started["eventType"], completed["eventType"]) == ("START", "COMPLETE")
    assert completed["job"]["facets"]["jobType"]["jobType"] == "INGEST"
    assert completed["job"]["name"] == "people"
    [source] = started["inputs"]
    assert (source["namespace"], source["name"]) == ("file", f"{tmp_path}/in")
    [output] = completed["outputs"]
    assert (output["namespace"], output["name"]) == ("file", f"{tmp_path}/out")
    assert output["facets"]["version"]["datasetVersion"] == str(summary.manifest)
    fields = {each["name"]: each["type"] for each in output["facets"]["schema"]["fields"]}
    assert fields == {"id": "Int64", "name": "String"}
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 2
    tags = {each["key"]: each["value"] for each in completed["run"]["facets"]["tags"]["tags"]}
    assert tags["chunkmap.ingest"] == summary.ingest


def test_a_load(receiver: Receiver, tmp_path: Path) -> None:
    output = Frames.of(tmp_path)
    output.add(pl.DataFrame({"id": [1, 2, 3]}))
    path = tmp_path / "warehouse.duckdb"
    file = LoadFile.model_validate(
        {
            "name": "warehouse",
            "input": {"uri": output.uri},
            "into": {"uri": f"duckdb:{path}", "table": "sales.orders"},
        }
    )
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE SCHEMA sales")
    storage = own_storage()
    with lineage(receiver.settings, storage, partial(facts_of_load, file, storage)) as done:
        done(open_load(file, load_settings(), storage).run())
    started, completed = bodies(receiver)
    [source] = started["inputs"]
    assert source["facets"]["version"]["datasetVersion"] == "1"
    assert [each["name"] for each in source["facets"]["schema"]["fields"]] == ["id"]
    [into] = completed["outputs"]
    assert (into["namespace"], into["name"]) == ("file", f"{path}#sales.orders")
    assert into["outputFacets"]["outputStatistics"]["rowCount"] == 3
    assert "outputStatistics" not in started["outputs"][0]["outputFacets"]


def test_an_ingest_that_fails(receiver: Receiver, tmp_path: Path) -> None:
    definition = Ingest.model_validate(
        {
            "name": "people",
            "files": {"uri": [f"{tmp_path}/none/a.jsonl"]},
            "output": {"uri": f"{tmp_path}/out/"},
        }
    )
    storage = own_storage()
    facts = partial(facts_of_ingest, definition, lambda place: None)
    with pytest.raises(ChunkmapError), lineage(receiver.settings, storage, facts) as done:
        done(ingest(definition, storage=storage))
    assert [event["eventType"] for event in bodies(receiver)] == ["START", "FAIL"]


PASSWORD = "hush-1234"
SHOP = f"postgresql://me:{PASSWORD}@db.example:5433/shop?sslmode=require"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (
            {"http": {"url": "https://api.example:8443/v1/orders"}},
            [("https://api.example:8443", "/v1/orders")],
        ),
        (
            {"files": {"uri": ["s3://b/in/2024/*.csv", "https://h.example/a.csv"]}},
            [("s3://b", "in/2024"), ("https://h.example", "/a.csv")],
        ),
        (
            {"sql": {"url": {"env": "SHOP"}, "table": "public.orders"}},
            [("postgres://db.example:5433", "shop.public.orders")],
        ),
        (
            {"sql": {"url": {"env": "SHOP"}, "query": "SELECT 1 AS id"}},
            [("postgres://db.example:5433", "shop")],
        ),
        ({"sql": {"url": "sqlite:shop.db", "table": "orders"}}, [("file", "shop.db#orders")]),
        ({"sql": {"url": {"env": "MISSING"}, "table": "orders"}}, []),
        ({"source": "shop.rows:orders"}, [("python", "shop.rows:orders")]),
    ],
)
def test_names_of_what_is_ingested(source: dict[str, Any], names: list[tuple[str, str]]) -> None:
    """As OpenLineage names them, without credentials."""
    definition = Ingest.model_validate({"name": "a", "output": {"uri": "s3://b/out/"}, **source})
    facts = facts_of_ingest(definition, lambda place: SHOP if place.env == "SHOP" else None)
    assert [each.dataset for each in facts.inputs] == names
    assert PASSWORD not in str(facts)


@pytest.mark.parametrize(
    ("into", "name"),
    [
        (
            {"uri": "postgresql://me@db.example/shop", "table": "orders"},
            ("postgres://db.example:5432", "shop.orders"),
        ),
        ({"uri": "delta:s3://lake/orders/"}, ("s3://lake", "orders")),
        ({"uri": "https://h.example/rows?a=1"}, ("https://h.example", "/rows")),
    ],
)
def test_names_of_destinations(into: dict[str, str], name: tuple[str, str], run: Run) -> None:
    publish(run)
    data = {"name": "a", "input": {"uri": OUTPUT}, "into": into}
    assert facts_of_load(LoadFile.model_validate(data), run.storage).into == name


def test_off_by_default_and_nothing_is_imported(run: Run) -> None:
    with lineage(LineageSettings(), run.storage, lambda: pytest.fail("not asked")) as done:
        done(summary_of(run, 1))


def test_a_run_goes_on_without_the_receiver(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that refuses events, and one that never answers."""
    settings = LineageSettings.model_validate({"url": "http://127.0.0.1:9"})

    def refuses(_: object) -> None:
        raise OSError("connection refused, api_key=hush-1234")

    with (
        caplog.at_level(logging.WARNING),
        lineage(settings, run.storage, facts_of(run), lambda _: refuses) as done,
    ):
        done(summary_of(run, 1))
    assert caplog.text.count("an event was not sent") == 2
    assert "hush" not in caplog.text
    released = Event()
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.05)
    with lineage(settings, run.storage, facts_of(run), lambda _: lambda _: released.wait()) as done:
        done(summary_of(run, 1))
    assert "not sent within 0.05 s" in caplog.text
    released.set()


def test_the_client_is_an_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openlineage.client.transport.http", None)
    settings = LineageSettings.model_validate({"url": "http://127.0.0.1:9"})
    with (
        pytest.raises(UsageError, match="OpenLineage client is not installed") as error,
        lineage(settings, run.storage, facts_of(run)),
    ):
        pass
    assert error.value.hint == "pip install 'chunkmap[lineage]'"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://shop/orders/", ("s3://shop", "orders")),
        ("s3://shop/a/b.parquet", ("s3://shop", "a/b.parquet")),
        ("s3://shop/", ("s3://shop", "/")),
        ("file:///data/orders/", ("file", "/data/orders")),
    ],
)
def test_names_of_datasets(uri: str, name: tuple[str, str]) -> None:
    assert dataset_name(uri) == name
