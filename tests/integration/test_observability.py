"""What Prefect, a collector of traces and a receiver of lineage get of real commands."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.ledger.ledger import Ledger
from tests.integration.world import PLANTED, World
from tests.support.otlp import collecting

pytestmark = pytest.mark.integration

TRANSFORMS = """
import polars as pl


def refuses_some(frame: pl.LazyFrame, token: str, password: str) -> pl.LazyFrame:
    def refuse(rows: pl.DataFrame) -> pl.DataFrame:
        if rows.height and rows["id"].max() >= 5_900:
            raise ValueError(f"no such price for {token}, password={password}")
        return rows

    return frame.map_batches(refuse)
"""


@pytest.fixture(scope="module", autouse=True)
def transforms(world: World) -> None:
    (world.root / "shop" / "observed.py").write_text(TRANSFORMS)


def logs_of(world: World, run: dict[str, Any]) -> list[dict[str, Any]]:
    """The log lines of a flow run, as its page in Prefect shows them."""
    asked = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
    return list(world.ask_prefect("logs/filter", asked))


def test_prefect_shows_our_log_lines(world: World) -> None:
    """Of a run in which some chunks fail: from the driver and from workers, with ids.

    And nothing of it shows the two secrets that the function has.
    """
    variable, secret = PLANTED
    params = {"token": {"from_env": variable}, "password": "hunter2"}
    job = world.job("observed", "shop.observed:refuses_some", params=params)
    said = world.chunkmap("run", job, "--json")
    assert said.code == 1, said.err
    run, failed = said.data["run"], said.data["failed"]
    assert failed >= 1
    shown = world.flow_run_of("observed")
    lines = logs_of(world, shown)
    messages = [line["message"] for line in lines]
    [planned] = [m for m in messages if m.startswith("observed: planned ")]
    assert planned.endswith(f"{said.data['chunks']} chunks of 6 objects, 6000 rows [run={run}]")
    assert any(m.startswith("observed: round 1, ") for m in messages)
    assert any(m.startswith("observed: failed") for m in messages)
    # A worker's lines name run, batch and chunk, and belong to the task run of the batch.
    chunks = [line for line in lines if line["message"].startswith("chunk ")]
    assert len(chunks) == failed
    assert all(line["level"] == 30 and line["task_run_id"] for line in chunks)
    assert all(f"[run={run} batch=" in line["message"] for line in chunks)
    assert all(" chunk=" in line["message"] for line in chunks)
    assert "ValueError: no such price" in chunks[0]["message"]
    own = {"id": {"any_": [shown["id"]]}}
    related = {"related": {"id": [f"prefect.flow-run.{shown['id']}"]}}
    ledger = Ledger(world.storage, "s3://demo/out/observed/", run)
    everything = (
        *(said.out, said.err, lines, shown, world.tasks_of(shown)),
        world.in_prefect("artifacts", flow_runs=own),
        world.ask_prefect("events/filter", {"filter": related, "limit": 50})["events"],
        ledger.read().failures.to_dicts(),
        world.storage.get(f"{ledger.prefix}report.html").data.decode(),
    )
    assert variable in str(shown["parameters"])
    for text in everything:
        assert text
        assert secret not in str(text) and "hunter2" not in str(text)


def test_traces_and_the_version_that_is_published(world: World) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    job = world.job("traced")
    with collecting() as collector:
        said = world.chunkmap("run", job, "--json", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        assert said.code == 0, said.err
        chunks = said.data["chunks"]
        collector.await_some(
            lambda: sum(span.name == "chunk" for span in collector.spans) >= chunks
        )
        spans = list(collector.spans)
    messages = [line["message"] for line in logs_of(world, world.flow_run_of(said))]
    run = f"[run={said.data['run']}]"
    assert f"traced: published version 1 of s3://demo/out/traced/ {run}" in messages
    assert len({span.trace for span in spans}) == 1
    counts = Counter(span.attributes.get("chunkmap.chunk.index") for span in spans)
    assert {counts[index] for index in range(chunks)} == {1}
    [root] = [span for span in spans if not span.parent]
    assert root.attributes["chunkmap.run"] == said.data["run"]
    known = {span.id for span in spans}
    assert all(span.parent in known for span in spans if span is not root)
    workers = {span.process for span in spans if span.name == "chunk"}
    assert root.process not in workers
    assert {"plan", "map", "publish"} <= {span.name for span in spans if span.parent == root.id}
    assert sum(span.attributes["s3.writes"] for span in spans if span.name == "chunk") >= chunks


def test_lineage_of_an_ingest_and_a_load(world: World, tmp_path: Path) -> None:
    pytest.importorskip("openlineage.client")
    from tests.flows.test_lineage import bodies, receiving

    world.storage.put(
        "s3://demo/lineage-notes/1.jsonl", b'{"id": 1, "note": "a"}\n{"id": 2, "note": "b"}\n'
    )
    (world.root / "lineage-notes.yaml").write_text(
        "name: lineage-notes\nfiles: {uri: 's3://demo/lineage-notes/'}\n"
        "output: {uri: 's3://demo/out/lineage-notes/'}\n"
    )
    (world.root / "load-lineage-notes.yaml").write_text(
        "name: load-lineage-notes\ninput: {uri: 's3://demo/out/lineage-notes/'}\n"
        f"into: {{uri: 'duckdb:{tmp_path}/notes.duckdb', table: notes}}\n"
    )
    with receiving() as receiver:
        url = {"CHUNKMAP_LINEAGE__URL": str(receiver.settings.url)}
        for command in (
            ("ingest", "lineage-notes.yaml"),
            ("load", "load-lineage-notes.yaml"),
        ):
            said = world.chunkmap(*command, "--json", **url)
            assert said.code == 0, said.err
        events = bodies(receiver)
    assert [(event["job"]["name"], event["eventType"]) for event in events] == [
        ("lineage-notes", "START"),
        ("lineage-notes", "COMPLETE"),
        ("load-lineage-notes", "START"),
        ("load-lineage-notes", "COMPLETE"),
    ]
    [output] = events[1]["outputs"]
    assert (output["namespace"], output["name"]) == ("s3://demo", "out/lineage-notes")
    [loaded] = events[3]["outputs"]
    assert loaded["outputFacets"]["outputStatistics"]["rowCount"] == 2
    # The run of the events is the flow run.
    assert events[0]["run"]["runId"] == world.flow_run_of("lineage-notes")["id"]
