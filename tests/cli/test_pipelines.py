"""`chunkmap pipeline`: what it shows, prints and exits with, without a Prefect server."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from pipeline.cli.pipelines import show
from pipeline.cli.pipelines.run import Request, backfill, options, run
from pipeline.errors import PipelineFileError, RunInterruptedError
from pipeline.pipelines.summary import StageRefusedError
from pipeline.table.scan import scan_output
from tests.pipelines.test_whole import ORDERS, in_table, of_day
from tests.servers.api import Api, Reply, serving

FILE = """\
name: daily
state: notes/
parameters: {date: date}
pipeline:
  - name: orders
    ingest:
      name: orders
      http: {url: URL, records: data, pages: {by: page}, retries: 0}
      window: {from: "{{ date }}", to: "{{ date + 1d }}", parameters: [since, until]}
      output: {uri: orders, mode: append}
  - name: warehouse
    when: rows > 0
    load: {name: warehouse, input: {uri: orders/}, into: {uri: w.duckdb, table: totals}}
"""


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    with serving(Api(ORDERS, only=of_day)) as api:
        (tmp_path / "daily.yaml").write_text(FILE.replace("URL", api.url))
        yield api


def request(date: str | None = "2024-03-01", *params: str) -> Request:
    return Request(Path("daily.yaml"), (), params, date, None)


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r" +", " ", capsys.readouterr().out)


def test_runs_are_shown(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    show.plan(request(), options(None, None), as_json=False)
    text = shown(capsys)
    assert "orders ingest daily.yaml run it has not been done" in text
    assert "warehouse load daily.yaml depends after orders: when rows > 0" in text
    show.status(Path("daily.yaml"), None, changes=(), limit=5, as_json=False)
    assert "daily has not been run" in shown(capsys)
    run(request(), options(None, None), as_json=False)
    text = shown(capsys)
    assert re.search(r"daily · run [0-9a-f]{16} · done · date 2024-03-01 · ", text)
    assert re.search(r"orders ingest daily\.yaml done 12 .* file://.*/orders/, manifest 1", text)
    run(request(), options(None, None), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [stage["state"] for stage in found["stages"]] == ["unchanged", "unchanged"]
    show.status(Path("daily.yaml"), None, changes=(), limit=5, as_json=False)
    assert "date 2024-03-01 done orders unchanged, warehouse unchanged" in shown(capsys)
    show.status(Path("daily.yaml"), None, changes=(), limit=5, as_json=True)
    [record] = json.loads(capsys.readouterr().out)["runs"]
    assert (record["state"], record["attempt"]) == ("done", 2)


def test_a_failure_shows_the_stages_and_the_next_step(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api.script = lambda query, times: Reply(401)
    with pytest.raises(StageRefusedError) as caught:
        run(request(), options(None, None), as_json=False)
    assert "orders ingest daily.yaml failed" in shown(capsys)
    assert "chunkmap pipeline run daily.yaml --param" in str(caught.value.hint)


def test_ctrl_c_names_the_command_that_goes_on(api: Api) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    import pipeline.pipelines.driver as driver

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "published_ingest", interrupt)
        with pytest.raises(RunInterruptedError) as caught:
            run(request(), options(None, None), as_json=True)
    assert "chunkmap pipeline run daily.yaml" in str(caught.value.hint)
    assert caught.value.exit_code == 130


def test_a_backfill_goes_on(api: Api, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(request("2024-03-02"), options(None, None), as_json=True)
    capsys.readouterr()
    api.script = lambda query, times: Reply(401) if "2024-03-03" in query.split("&")[0] else None
    with pytest.raises(StageRefusedError) as caught:
        backfill(request(None), "2024-03-01", "2024-03-05", 1, recheck=False, as_json=False)
    assert "pipeline backfill daily.yaml --from 2024-03-01 --to 2024-03-05" in str(
        caught.value.hint
    )
    capsys.readouterr()
    api.script = lambda query, times: None
    backfill(request(None), "2024-03-01", "2024-03-05", 1, recheck=False, as_json=False)
    text = shown(capsys)
    # The fourth has no orders: its ingest is published, and its load is skipped.
    assert "daily: 2 runs, 2 done before" in text
    assert "date 2024-03-04 done orders done, 0 rows, warehouse skipped" in text
    assert len(in_table(tmp_path)) == len(ORDERS)
    backfill(request(None), "2024-03-01", "2024-03-05", 2, recheck=True, as_json=True)
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2


MAPS = """\
name: daily
state: notes/
pipeline:
  - name: copy
    map:
      name: copy
      input: {uri: in/}
      transform: copies:copy
      output: {uri: out, mode: overwrite}
"""
COPY = """
import os

def copy(lf):
    import polars as pl
    return lf.with_columns(process=pl.lit(os.getpid()))
"""


def test_worker_processes_of_this_machine_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHUNKMAP_TRANSFORMS__ALLOW", "copies")
    monkeypatch.setenv("CHUNKMAP_DASK__WORKERS", "1")
    # Nothing is asked of it.
    monkeypatch.setenv("CHUNKMAP_PREFECT__API_URL", "http://127.0.0.1:9/api")
    (tmp_path / "in").mkdir()
    pl.DataFrame({"n": [1, 2]}).write_parquet("in/a.parquet")
    Path("copies.py").write_text(COPY)
    Path("daily.yaml").write_text(MAPS)
    run(request(None), options(None, None), local=True, as_json=False)
    assert "copy map daily.yaml done 2" in shown(capsys)
    [process] = scan_output(f"{tmp_path}/out").collect()["process"].unique().to_list()
    assert process != os.getpid()


def test_secret_blocks_are_refused_without_prefect(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    auth = "http: {auth: {secret: api-token}, "
    Path("daily.yaml").write_text(FILE.replace("http: {", auth).replace("URL", api.url))
    with pytest.raises(PipelineFileError, match="the secret of orders is in a Secret block"):
        run(request(), options(None, None), local=True, as_json=True)


@pytest.mark.parametrize(
    ("params", "date", "says"),
    [
        (("date",), None, "is not NAME=VALUE"),
        (("day=1",), None, "has no parameter 'day'"),
        ((), "soon", "'soon' is not a date"),
        ((), None, "parameter date has no value"),
    ],
)
def test_wrong_parameters_are_refused(
    api: Api, params: tuple[str, ...], date: str | None, says: str
) -> None:
    with pytest.raises(PipelineFileError, match=says):
        run(request(date, *params), options(None, None), as_json=True)


def test_wrong_ranges_are_refused(api: Api) -> None:
    for start, end in (("2024-03-02", "2024-03-02"), ("x", "2024-03-02")):
        with pytest.raises(PipelineFileError, match=r"--to|--from"):
            backfill(request(None), start, end, 1, recheck=False, as_json=True)
    with pytest.raises(PipelineFileError, match="exclude each other"):
        options("orders", "warehouse")
