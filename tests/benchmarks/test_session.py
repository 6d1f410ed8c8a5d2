from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.suite.environments import PEERS, REFERENCE
from benchmarks.suite.pytest_storage import as_pytest_benchmark, save
from benchmarks.suite.session import (
    Request,
    Session,
    chosen,
    contender,
    find_record,
    is_counted,
    noise_workload,
    peers_of,
    variants,
)
from benchmarks.suite.workloads import ALL, WORKLOADS
from pipeline.cli.app import app
from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from tests.support.benchmark_records import full_record, record


def test_suites_and_names_choose_workloads() -> None:
    assert [workload.name for workload in chosen(["main"])] == ["row-map", "few-rows", "ledger"]
    assert [workload.name for workload in chosen(["wait", "row-map"])] == ["row-map", "wait"]
    assert [workload.name for workload in chosen(["ci"])] == ["stations", "daily", "skew", "fixed"]
    assert len(chosen([])) == len(chosen(["all"])) == len(WORKLOADS)
    with pytest.raises(UsageError, match="no workload or suite 'nope'"):
        chosen(["nope"])


@pytest.mark.parametrize(
    ("names", "usual"),
    [
        ((), "row-map"),
        (("main",), "row-map"),
        (("ci",), "stations"),
        (("wait", "join"), "join"),
        (("wait",), "fixed"),
    ],
)
def test_the_noise_is_that_of_what_is_measured(names: tuple[str, ...], usual: str) -> None:
    assert noise_workload(chosen(names)).name == usual


def test_the_main_suite_is_against_everybody_and_the_rest_against_polars() -> None:
    assert peers_of(WORKLOADS["row-map"], Request()) == list(ALL)
    assert peers_of(WORKLOADS["join"], Request()) == ["polars"]
    assert peers_of(WORKLOADS["plan"], Request()) == ["dask-dataframe"], "an aim names it"
    assert peers_of(WORKLOADS["join"], Request(full=True)) == ["polars", "duckdb"]
    assert peers_of(WORKLOADS["row-map"], Request(against=("duckdb",))) == ["duckdb"]
    with pytest.raises(UsageError, match="no peer 'nope'"):
        peers_of(WORKLOADS["row-map"], Request(against=("nope",)))


def test_requests_are_counted_where_they_tell_something_of_their_own() -> None:
    assert is_counted(WORKLOADS["row-map"], Request())
    assert is_counted(WORKLOADS["publish"], Request())
    assert not is_counted(WORKLOADS["strings"], Request())
    assert is_counted(WORKLOADS["strings"], Request(full=True))
    assert not is_counted(WORKLOADS["row-map"], Request(full=True, count=False))


def test_every_peer_is_in_the_main_suite() -> None:
    assert {"chunkmap", *ALL} == set(PEERS)


@pytest.mark.parametrize(
    "name", [workload.name for workload in WORKLOADS.values() if workload.peers]
)
def test_each_comparison_has_three_warm_samples(name: str) -> None:
    assert name == "backfill" or WORKLOADS[name].iterations > 3  # That one takes a minute.


def test_curves_have_points() -> None:
    assert variants(WORKLOADS["wait"], "s") == [(1, 24), (8, 192), (32, 768)]
    assert variants(WORKLOADS["ledger"], "s") == [(0, 1_000), (0, 4_000)]
    assert variants(WORKLOADS["row-map"], "s") == [(0, 0)]


def test_the_command_asks_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Request(
        ("main", "join"),
        "m",
        ("polars", "duckdb"),
        7,
        3,
        True,
        False,
        "s3://x/y/",
        None,
        True,
        0.15,
    )
    seen: list[Request] = []
    monkeypatch.setattr(
        "benchmarks.commands.run", lambda request, environment, *, as_json: seen.append(request)
    )
    words = asked.command().split()
    assert words[0] == "chunkmap"
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    assert seen == [asked]


def test_settings_must_allow_the_transforms(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not allow") as caught:
        Session(Settings(state_dir=tmp_path), Request())
    assert "suite_settings" in str(caught.value.hint)


def test_chunkmap_is_measured_in_the_environment_of_the_session(tmp_path: Path) -> None:
    for name in ("local", "staging"):
        settings = Settings(state_dir=tmp_path, environment=name)
        variables = contender(REFERENCE, settings, print).variables
        told = variables.get("CHUNKMAP_ENVIRONMENT", "local")
        assert told == name


def test_records_are_found_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    with pytest.raises(UsageError, match="no session"):
        find_record(settings, None)
    folder = tmp_path / "bench" / "records"
    folder.mkdir(parents=True)
    for day in (1, 2):
        made = record(day=day)
        (folder / f"{made.id}.json").write_text(made.model_dump_json())
    assert find_record(settings, None).created.day == 2
    assert find_record(settings, "20260101").created.day == 1
    assert find_record(settings, str(folder / f"{made.id}.json")).created.day == 2
    for name, words in (("2026", "may be"), ("nope", "no session nope")):
        with pytest.raises(UsageError, match=words) as caught:
            find_record(settings, name)
        assert "chunkmap bench history" in str(caught.value.hint)


def test_pytest_benchmark_reads_what_is_stored(tmp_path: Path) -> None:
    for day in (1, 2):
        save(full_record(day, day * 1.0), tmp_path)
    shown = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest_benchmark",
            "--storage",
            tmp_path.as_uri(),
            "compare",
            "--group-by=group",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "row-map[chunkmap]" in shown.stdout
    assert "ledger[ray-data-10000 tasks]" in shown.stdout


def test_stored_entries_are_those_with_valid_times() -> None:
    made = as_pytest_benchmark(full_record())
    assert len(made["benchmarks"]) == sum(result.state == "ok" for result in full_record().results)
    assert json.dumps(made)


def test_list_names_everything() -> None:
    shown = CliRunner().invoke(app, ["bench", "list", "--json"])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert set(told["workloads"]) == set(WORKLOADS)
    row_map = told["workloads"]["row-map"]
    assert (row_map["suite"], row_map["peers"]) == ("main", list(WORKLOADS["row-map"].peers))
    assert row_map["says"] == WORKLOADS["row-map"].says
    assert set(told["peers"]) == set(PEERS)
