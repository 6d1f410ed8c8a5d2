"""OpenTelemetry traces of runs: which spans there are, of which parents, and that they are off."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from pipeline import traces
from pipeline.config.settings import Settings, TraceSettings, load_settings
from pipeline.local.launch import run_locally
from pipeline.local.workers import LocalWorkers
from pipeline.processes import record_interrupts
from pipeline.runs.driver.plan import ResumeOptions
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.runs.worker.run_settings import sent_parent, sent_settings
from pipeline.storage import own_storage
from pipeline.traces import span, tracing
from tests.support.backfills import Days, days
from tests.support.otlp import Collector, Span, collecting
from tests.support.small import Small

pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")

CODE = """
def same(lf):
    return lf

def refuse_three(lf):
    def check(frame):
        if frame["n"].max() == 3:
            raise ValueError("three; password=hunter2")
        return frame
    return lf.map_batches(check)
"""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    for number in range(1, 5):
        small.write(f"{number}.parquet", pl.DataFrame({"n": [number]}))
    return small


def traced(settings: Settings, collector: Collector) -> Settings:
    return settings.model_copy(update={"traces": TraceSettings(endpoint=collector.url)})


def of_run(collector: Collector, run: str) -> tuple[Span, list[Span]]:
    """The span of a run, and all spans of its trace."""
    [found] = [s for s in collector.spans if s.attributes.get("chunkmap.run") == run]
    return found, [s for s in collector.spans if s.trace == found.trace]


def children(spans: list[Span], parent: Span) -> list[str]:
    return [s.name for s in sorted(spans, key=lambda s: s.started) if s.parent == parent.id]


def test_the_spans_of_a_run(small: Small, collector: Collector) -> None:
    summary = run_serially(small.job(), traced(small.settings, collector), own_storage())
    root, spans = of_run(collector, summary.run)
    assert (root.name, root.parent, root.error) == ("run test", b"", None)
    assert root.attributes["chunkmap.output"] == small.output
    assert root.attributes["s3.writes"] >= 0
    names = children(spans, root)
    assert names[0] == "plan"
    assert {"map", "publish"} <= set(names)
    assert root.started <= min(s.started for s in spans)
    [mapping] = [s for s in spans if s.name == "map"]
    batches = [s for s in spans if s.name == "batch"]
    assert {s.parent for s in batches} == {mapping.id}
    chunks = [s for s in spans if s.name == "chunk"]
    assert sorted(s.attributes["chunkmap.chunk.index"] for s in chunks) == [0, 1, 2, 3]
    assert {s.parent for s in chunks} <= {s.id for s in batches}
    for chunk in chunks:
        assert chunk.attributes["chunkmap.rows_out"] == 1
        assert {"s3.reads", "s3.writes", "s3.retries"} <= set(chunk.attributes)
        assert mapping.started <= chunk.started <= chunk.ended <= mapping.ended
    # Another run has another trace, and one that is published maps nothing.
    again = run_serially(small.job(), traced(small.settings, collector), own_storage())
    assert again.mapped == 0
    roots = [s for s in collector.spans if s.attributes.get("chunkmap.run") == summary.run]
    assert len({s.trace for s in roots}) == 2


def test_workers_continue_the_drivers_trace(small: Small, collector: Collector) -> None:
    """Every chunk has one span, of a process other than the driver's."""
    settings = traced(load_settings(overrides={"dask": {"workers": 2}}), collector)
    with LocalWorkers(settings) as workers, record_interrupts():
        options = ResumeOptions()
        summary = run_locally(small.job(), settings, lambda *_: None, options, workers)
        # Theirs come a moment later.
        collector.await_some(
            lambda: sum(s.name == "chunk" for s in of_run(collector, summary.run)[1]) == 4
        )
    root, spans = of_run(collector, summary.run)
    chunks = [s for s in spans if s.name == "chunk"]
    assert sorted(s.attributes["chunkmap.chunk.index"] for s in chunks) == [0, 1, 2, 3]
    assert root.process not in {s.process for s in chunks}
    known = {s.id for s in spans}
    assert all(s.parent in known for s in spans if s is not root)


def test_failures(small: Small, collector: Collector) -> None:
    settings = traced(small.settings, collector)
    with pytest.raises(RunIncompleteError) as error:
        run_serially(small.job("refuse_three"), settings, own_storage())
    root, spans = of_run(collector, error.value.summary.run)
    failed = [s for s in spans if s.name == "chunk" and s.error is not None]
    assert [s.attributes["chunkmap.chunk.index"] for s in failed] == [2]
    assert "ValueError: three" in str(failed[0].error)
    assert "1 of 4 chunks failed" in str(root.error)
    assert all(b"hunter2" not in body for body in collector.bodies)


def test_a_backfill_is_one_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.chdir(tmp_path)
    made = Days(tmp_path)
    made.write(days("2024-03-08", 2))
    store = made.create(made.job())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    made.drive(store)
    [root] = [s for s in collector.spans if s.attributes.get("chunkmap.backfill") == store.backfill]
    spans = [s for s in collector.spans if s.trace == root.trace]
    runs = [s for s in spans if s.name.startswith("run ")]
    assert runs
    assert Counter(s.name for s in spans)["chunk"] == 4
    assert {s.parent for s in spans if s.name == "publish"} <= {s.id for s in runs}


def test_nothing_is_imported_or_sent_where_it_is_off(small: Small) -> None:
    assert sent_parent(sent_settings(small.settings)) is None
    program = (
        "import sys; from pipeline import traces\n"
        "with traces.tracing(None), traces.span('a', {'b': 1}):\n"
        "    traces.set_attributes({'c': 2}); traces.record_span('d', 0.0, 1.0, {})\n"
        "assert not traces.is_on() and traces.current_parent() is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"


def test_a_run_goes_on_without_the_collector(
    small: Small, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens; it costs a moment at the end, once."""
    monkeypatch.setattr(traces, "FLUSH_SECONDS", 0.2)
    monkeypatch.setattr(traces, "SEND_SECONDS", 0.1)
    settings = small.settings.model_copy(
        update={"traces": TraceSettings(endpoint="http://127.0.0.1:9")}
    )
    with caplog.at_level(logging.WARNING):
        assert run_serially(small.job(), settings, own_storage()).state == "done"
        clock = time.monotonic()
        for _ in range(3):
            with tracing("http://127.0.0.1:9"), span("again"):
                pass
        assert time.monotonic() - clock < 2
    said = [message for message in caplog.messages if "takes no traces" in message]
    assert len(said) <= 1
    assert not [m for m in caplog.messages if "Traceback" in m]


def test_a_run_goes_on_without_the_package(
    small: Small, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    settings = small.settings.model_copy(
        update={"traces": TraceSettings(endpoint="http://127.0.0.1:8")}
    )
    assert run_serially(small.job(), settings, own_storage()).state == "done"
    assert "pip install 'chunkmap[traces]'" in caplog.text
