"""`chunkmap demo`, from nothing, twice."""

import json
from pathlib import Path

import pytest

from pipeline.cluster.local import processes
from pipeline.cluster.local.state import StateFolder
from tests.integration.world import World

# README.md, whose commands are tested as well, runs the demo from nothing.
pytestmark = [pytest.mark.integration, pytest.mark.long]


def test_the_demo_runs_verifies_stops_and_then_finds_it_done(tmp_path: Path) -> None:
    # A shell that is set up for another S3 changes nothing.
    world = World(tmp_path, {"AWS_PROFILE": "work", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    first = world.chunkmap("demo", "--json")
    assert first.code == 0, first.err
    assert "not used by the demo" in first.err
    assert "AWS_ENDPOINT_URL, AWS_PROFILE" in first.err
    assert first.data["rows_in"] > 3_000_000
    assert first.data["verified"]["rows"] == first.data["rows_out"]
    assert first.data["mapped"] == first.data["chunks"]
    assert Path(first.data["local_report"]).exists()
    assert not processes.marked(StateFolder(tmp_path / ".chunkmap").marker())

    again = world.chunkmap("demo")
    assert again.code == 0, again.err
    assert f"Run {first.data['run']} is complete: 0 of {first.data['chunks']}" in again.out
    assert "matches its manifest" in again.out
    assert "Prefect UI" not in again.out, "the server is stopped: a link would be dead"
    following = again.out.partition("Next:")[2].split("\n")
    commands = [line.partition("#")[0].strip() for line in following if line]
    assert commands == [
        "chunkmap up",
        "chunkmap head s3://demo/revenue/",
        "chunkmap init s3://demo/tpch/lineitem/",
    ]
    report = Path(first.data["local_report"]).with_name("report.json")
    assert json.loads(report.read_text())["run"]["state"] == "done"
    assert not processes.marked(StateFolder(tmp_path / ".chunkmap").marker())
