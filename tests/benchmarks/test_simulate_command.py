"""`chunkmap bench simulate`: its parameters, its words, and what it refuses."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import commands
from benchmarks.simulation import fitting, probes, probes_engine
from benchmarks.simulation.case import parse_bytes, parse_count
from benchmarks.simulation.parameters import FILE, load_parameters, sources, stores
from pipeline.cli.app import app
from pipeline.config.settings import Settings
from pipeline.errors import UsageError

# -- the file of parameters ---------------------------------------------------------------------


def test_every_parameter_has_a_source() -> None:
    assert {"amazon", "here"} <= set(stores())
    for store in stores():
        assert load_parameters(store)
        assert all(said.partition(": ")[2] for said in sources(store).values())


def test_measured_parameters_tell_when_and_of_what() -> None:
    said = json.loads(FILE.read_text("utf-8"))
    assert said["made"].keys() >= {"command", "date", "commit", "machine", "load"}
    groups = {**said["parameters"], **said["stores"]}
    for name, group in groups.items():
        for key, one in group.items():
            marks = {"as of"} if name in ("amazon", "prices") else {"measured", "commit"}
            assert one.keys() >= {"value", "source", *marks}, f"{name}.{key}"


def test_parameters_can_be_changed() -> None:
    changed = load_parameters("amazon", changes={"driver.submit_seconds": "0.5"})
    assert changed.driver.submit_seconds == 0.5


# -- the command ----------------------------------------------------------------------------------

WORDS = ["bench", "simulate", "--workers", "8", "--chunks", "2e3", "--bytes", "200GB"]


def test_the_command(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, [*WORDS, "--rows", "1e9", "--html", str(tmp_path / "a.html")])
    assert shown.exit_code == 0, shown.output
    for words in ("limited by", "Worker threads", "CompleteMultipartUpload", "●", "at least 80%"):
        assert words in shown.output
    assert "Time against workers" in (tmp_path / "a.html").read_text("utf-8")


def test_the_command_as_json() -> None:
    shown = CliRunner().invoke(app, [*WORDS, "--json", "--wait", "100ms"])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert told["case"]["chunks"] == 2000
    assert told["seconds"] == pytest.approx(sum(told["phases"].values()))
    assert [point["workers"] for point in told["curve"]] == [1, 2, 8, 32, 128]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--workers": "0"}, "--workers '0' is below 1"),
        ({"--workers": "many"}, "--workers 'many' is not a whole number"),
        ({"--workers": "2e9"}, "workers 2,000,000,000 is not between 1 and 1,000,000"),
        ({"--chunks": "1.5"}, "--chunks '1.5' is not a whole number"),
        ({"--chunks": "-5"}, "--chunks '-5' is not a whole number"),
        ({"--chunks": "nan"}, "--chunks 'nan' is not a whole number"),
        ({"--chunks": "1e9"}, "chunks 1,000,000,000 is not between"),
        ({"--bytes": "lots"}, "--bytes 'lots' is not a size"),
        ({"--bytes": "100"}, "cannot be cut into 2,000 chunks"),
        ({"--bytes": "1e3000"}, "is not a size"),
        ({"--wait": "soon"}, "--wait 'soon' is not a time"),
        ({"--wait": "9d"}, "is not between 0 s and a day"),
        ({"--store": "attic"}, "no object store 'attic'"),
        ({"--set": "driver.submit_seconds"}, "is not NAME=VALUE"),
        ({"--set": "driver.speed=1"}, "no parameter 'driver.speed'"),
        ({"--set": "driver.submit_seconds=-1"}, "greater than or equal to 0"),
        ({"--set": "store.stream_bytes=0"}, "greater than 0"),
        ({"--prefixes": "0"}, "--prefixes '0' is below 1"),
        ({"--html": "/nowhere/at/all.html"}, "cannot be written"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, str], words: str) -> None:
    given_words = dict(zip(WORDS[2::2], WORDS[3::2], strict=True)) | changes
    flat = [word for pair in given_words.items() for word in pair]
    shown = CliRunner().invoke(app, ["bench", "simulate", *flat])
    assert isinstance(shown.exception, UsageError), shown.output
    assert shown.exception.exit_code == 2
    assert words in str(shown.exception)


def test_a_file_that_holds_no_parameters_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    path.write_text("{}")
    with pytest.raises(UsageError, match="holds no parameters"):
        load_parameters("amazon", path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1000", 1000), ("1e6", 10**6), ("2.5M", 2_500_000), ("1_000", 1000), ("1,000", 1000)],
)
def test_counts(text: str, value: int) -> None:
    assert parse_count(text, "chunks") == value


@pytest.mark.parametrize(
    ("text", "value"), [("100TB", 1e14), ("1.5 PB", 1.5e15), ("2PiB", 2 * 2**50), ("10", 10)]
)
def test_sizes(text: str, value: float) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("exists", [True, False])
def test_fitting_writes_what_was_measured_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    file, suites = tmp_path / "parameters.json", FILE.read_bytes()
    if exists:
        file.write_bytes(suites)
    for name in ("worker", "planning", "ledger"):
        monkeypatch.setattr(probes, name, lambda *_: {"worker.chunk_seconds": (0.0123456, "how")})
    monkeypatch.setattr(probes_engine, "engine", lambda *_: {})
    monkeypatch.setattr(probes, "store", lambda *_: {"get_seconds": (0.002, "how")})
    monkeypatch.setattr(probes, "discard", lambda *_: None)
    monkeypatch.setattr(commands, "_stack", lambda environment: nullcontext(Settings()))
    shown = CliRunner().invoke(app, ["bench", "fit", "--parameters", str(file)])
    assert shown.exit_code == 0, shown.output
    assert FILE.read_bytes() == suites
    before, after = (json.loads(path.read_text("utf-8")) for path in (FILE, file))
    entry = after["parameters"]["worker"]["chunk_seconds"]
    assert (entry["value"], entry["source"]) == (0.01235, "how")
    assert len(entry["commit"]) >= 7
    assert after["stores"]["amazon"] == before["stores"]["amazon"]
    assert after["parameters"]["prices"] == before["parameters"]["prices"]
    assert after["made"]["command"] == fitting.COMMAND
    assert load_parameters("here", file).store.get_seconds == 0.002


def test_a_file_that_cannot_be_changed_is_refused_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.commands.local.up", lambda *_: pytest.fail("it was started"))
    (tmp_path / "none.json").write_text("{}")
    for name, words in (("none.json", "holds no parameters"), ("a/b.json", "there is no folder")):
        command = ["bench", "fit", "--parameters", str(tmp_path / name)]
        shown = CliRunner().invoke(app, command)
        assert isinstance(shown.exception, UsageError)
        assert words in str(shown.exception)


def test_an_unknown_group_is_refused_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.commands.local.up", lambda *_: pytest.fail("it was started"))
    shown = CliRunner().invoke(app, ["bench", "fit", "workers"])
    assert shown.exit_code != 0
    assert isinstance(shown.exception, UsageError)
    assert "no group workers" in str(shown.exception)
    assert "engine, worker" in str(shown.exception.hint)


def test_a_probe_is_of_the_fastest_quarter() -> None:
    assert probes.quick(40, lambda n: time.sleep(0.02 if n % 2 else 0.0)) < 0.01
    assert probes.burst(10, lambda n: None) > 100
