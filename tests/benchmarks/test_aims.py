"""Aims: each has a figure in a record that holds its workload, and a command that measures it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.report.aims import build_aims_markdown, summary
from benchmarks.simulation.aims import judge_simulated
from benchmarks.simulation.answer import simulate
from benchmarks.simulation.case import Case
from benchmarks.simulation.parameters import load_parameters
from benchmarks.suite.aims import AIMS, Aim, Judgement, judge
from benchmarks.suite.record import Noise, Record, Result
from benchmarks.suite.session import Request, chosen
from pipeline.cli.app import app
from tests.contracts.source import ROOT
from tests.support.benchmark_records import around, bad, card, record, result

BY_NAME = {aim.what: aim for aim in AIMS}


def changed(made: Result, **values: object) -> Result:
    """The result with these values in each of its iterations."""
    processes = tuple(
        process.model_copy(
            update={"iterations": tuple(i.model_copy(update=values) for i in process.iterations)}
        )
        for process in made.processes
    )
    return made.model_copy(update={"processes": processes})


def with_figures(made: Result, **figures: object) -> Result:
    return changed(made, figures=figures)


def row_map(**seconds: float) -> list[Result]:
    """Results on row-map; a name's underscores are dashes."""
    return [
        result("row-map", name.replace("_", "-"), around(value)) for name, value in seconds.items()
    ]


def adding(workload: str, **seconds: float) -> list[Result]:
    """Results on a workload that keeps columns."""
    return [
        result(workload, name.replace("_", "-"), around(value)) for name, value in seconds.items()
    ]


EVERYBODY = {
    **{"chunkmap": 1.8, "polars": 2.0, "duckdb": 3.0, "daft": 4.0},
    **{"pyspark": 4.0, "ray_data": 9.0, "dask_dataframe": 5.0},
}


def at_scale(scale: str, *results: Result) -> Record:
    return record(*results).model_copy(
        update={"scale": scale, "datasets": (card("small").model_copy(update={"files": 100_000}),)}
    )


SMALL = at_scale(
    "s",
    with_figures(
        result("fixed", "chunkmap", around(9.0)),
        phases={"plan": 0.2, "publish": 0.05, "report": 8.0},
    ),
    result("backfill", "chunkmap", around(7.0)),
    *adding("add-columns", **EVERYBODY),
    *adding("rename-column", chunkmap=1.0, polars=10.0),
    result("wait", "chunkmap", around(24 * 0.5), workers=1, tasks=24),
    result("wait", "chunkmap", around(24 * 0.5 / 0.95), workers=32, tasks=768),
)
MIDDLE = at_scale(
    "m",
    *row_map(**EVERYBODY),
    result("stations", "chunkmap", around(1.2)),
    result("stations", "polars", around(1.0)),
    result("daily", "chunkmap", around(3.0)),
    result("daily", "polars", around(1.0)),
    result("windows", "chunkmap", around(5.0), tasks=1_096),
    result("windows", "chunkmap", around(5.0 + 8_904 * 0.003), tasks=10_000),
    result("ledger", "chunkmap", around(100.0), tasks=10_000),
    result("ledger", "chunkmap", around(5.0), tasks=100_000),
)
LARGE = at_scale(
    "l",
    *row_map(chunkmap=1.85, polars=2.0, duckdb=3.0, daft=4.0),
    result("stations", "chunkmap", around(1.2)),
    result("stations", "polars", around(1.0)),
    with_figures(
        result("small-files", "chunkmap", around(250.0), tasks=100_000),
        driver_peak_bytes=450_000_000,
    ),
    result("plan", "chunkmap", around(10.0)),
    result("plan-again", "chunkmap", around(5.0)),
)
EXPECTED = {
    "row-map, 24 million rows, against the fastest of Polars": (0.9, "met"),
    "row-map, 120 million rows, against the fastest of Polars": (0.925, "missed"),
    "row-map, bytes written": (1.0, "met"),
    "row-map, 24 million rows, against the fastest of PySpark": (0.45, "missed"),
    "row-map, processor time": (0.9, "missed"),
    "three columns next to sixteen kept ones, against": (0.9, "missed"),
    "three columns next to sixteen kept ones, bytes": (1.0, "missed"),
    "one column renamed": (0.1, "missed"),
    "stations, 100 million": (1.2, "met"),
    "stations, 1,000 million": (1.2, "missed"),
    "fixed cost": (0.25, "met"),
    "daily, 1,096 files": (3.0, "missed"),
    "daily, S3 requests": (105 / 50, "met"),
    "backfill": (7.0, "missed"),
    "each further window": (3.0, "met"),
    "100,000 chunks of 4 KiB, staged": (2.5, "met"),
    "100,000 chunks of 4 KiB, peak": (450.0, "missed"),
    "100,000 chunks in the ledger": (0.05, "met"),
    "planning 100,000": (10_000, "met"),
    "planning them again": (20_000, "missed"),
    "32 threads": (0.95, "met"),
}


def of(what: str, *records: Record) -> Judgement:
    (aim,) = [aim for aim in AIMS if aim.what.startswith(what)]
    (judgement,) = judge([aim], records)
    return judgement


@pytest.mark.parametrize("what", EXPECTED)
def test_each_aim_has_its_figure(what: str) -> None:
    value, state = EXPECTED[what]
    judgement = of(what, SMALL, MIDDLE, LARGE)
    assert judgement.figure is not None
    assert judgement.figure.value.value == pytest.approx(value, rel=1e-6)
    assert judgement.state == state


def test_no_aim_is_left_out() -> None:
    assert len(EXPECTED) == len(AIMS)
    assert all(aim.what.startswith(tuple(EXPECTED)) for aim in AIMS)


def test_nothing_is_met_without_a_session() -> None:
    assert {judgement.state for judgement in judge(AIMS, [])} == {"not measured"}
    assert {judgement.state for judgement in judge(AIMS, [record()])} == {"not measured"}


def test_a_session_of_another_scale_does_not_count() -> None:
    assert of("stations, 100 million", LARGE).state == "not measured"


def test_the_newest_session_with_a_figure_counts() -> None:
    slow = at_scale("m", *row_map(**EVERYBODY | {"chunkmap": 8.0}))
    other = at_scale("m", result("daily", "chunkmap", around(1.0)))
    judged = of("row-map, 24 million rows, against the fastest of Polars", MIDDLE, slow, other)
    assert (judged.state, judged.record) == ("missed", slow)


def test_the_fastest_is_of_all_that_are_named() -> None:
    """A peer that failed may have been the fastest: without it there is no figure."""
    failed = bad("row-map", "polars", "failed", "no memory")
    others = row_map(chunkmap=1.0, duckdb=2.0, daft=2.0)
    judged = of(
        "row-map, 24 million rows, against the fastest of Polars", at_scale("m", failed, *others)
    )
    assert judged.state == "not measured"


def test_two_samples_neither_meet_nor_miss() -> None:
    made = at_scale("s", result("backfill", "chunkmap", [1.0, 1.0]))
    assert of("backfill", made).state == "too few samples"


def test_a_noisy_session_is_only_an_indication() -> None:
    """The noise of a figure of ours alone is that of our times; of a ratio, also the peer's."""
    pairs = {
        "chunkmap": (tuple(around(1.0)), tuple(around(1.01))),
        "polars": (tuple(around(1.0)), tuple(around(2.0))),
    }
    noisy = {"noise": Noise(workload="row-map", pairs=pairs, floor=1.1)}
    assert not of("fixed cost", SMALL.model_copy(update=noisy)).is_noisy
    assert of("stations, 100 million", MIDDLE.model_copy(update=noisy)).is_noisy
    assert of("fixed cost", SMALL.model_copy(update={"noise": None})).is_noisy


def test_bytes_and_requests_have_no_noise() -> None:
    """They are exact, so that a small excess is shown."""
    ours, *theirs = row_map(**EVERYBODY)
    larger = at_scale("m", changed(ours, bytes=9_004_500), *theirs)
    for made in (larger, larger.model_copy(update={"noise": None})):
        judgement = of("row-map, bytes written", made)
        assert (judgement.state, judgement.is_noisy) == ("missed", False)
        assert judgement.noise_text() == ""
        assert judgement.figure_text().startswith("1.0005 times, ")
        assert judgement.aim.limit_text() == "at most 1.0000 times"
    assert of("daily, S3 requests", MIDDLE).noise_text() == ""


@pytest.mark.parametrize("aim", AIMS, ids=lambda aim: aim.what)
def test_the_command_measures_what_the_aim_is_about(
    aim: Aim, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []
    monkeypatch.setattr(
        "benchmarks.commands.run", lambda request, environment, *, as_json: asked.append(request)
    )
    shown = CliRunner().invoke(app, shlex.split(aim.command)[1:])
    assert shown.exit_code == 0, shown.output
    assert asked[0].scale == aim.scale
    (workload,) = chosen(asked[0].names)
    whole = (SMALL, MIDDLE, LARGE)
    alone = [
        made.model_copy(
            update={"results": tuple(r for r in made.results if r.workload == workload.name)}
        )
        for made in whole
    ]
    assert judge([aim], alone)[0].state != "not measured"
    assert asked[0].iterations in (None, 4, 6)
    assert (asked[0].iterations or workload.iterations) > 3, "too few samples"


def test_the_simulation_names_the_limits() -> None:
    *judged, accuracy = judge_simulated()
    assert (len(judged), accuracy.state) == (2, "not measured")
    for judgement in judged:
        assert judgement.figure is not None
        assert "limited by" in judgement.figure.note and "next" in judgement.figure.note
        reached = judgement.figure.value.value <= judgement.aim.limit
        assert judgement.state == ("met" if reached else "missed")


def waiting(factor: float, *, workers: tuple[int, ...] = (1, 8, 32)) -> Record:
    """A session whose runs took `factor` times as long as predicted."""
    parameters = load_parameters("here")
    groups = card("row-groups").model_copy(update={"files": 10, "row_groups": 1000, "bytes": 10**5})
    results = []
    for number in workers:
        chunks = number * 24
        case = Case(
            workers=number, chunks=chunks, stored_bytes=chunks * 100, files=10, wait_seconds=0.5
        )
        seconds = simulate(case, parameters).seconds * factor
        results.append(result("wait", "chunkmap", around(seconds), workers=number, tasks=chunks))
    return record(*results).model_copy(update={"datasets": (groups,)})


@pytest.mark.parametrize(
    ("factor", "state", "note"), [(1.0, "met", "+0% on"), (1.5, "missed", "-33% on")]
)
def test_the_simulation_is_held_against_what_was_measured(
    factor: float, state: str, note: str
) -> None:
    accuracy = judge_simulated([waiting(factor)])[-1]
    assert accuracy.state == state
    assert accuracy.figure is not None and note in accuracy.figure.note
    assert judge_simulated([waiting(1.0, workers=(1, 8))])[-1].state == "not measured"


def test_the_command_prints_and_stores_the_table(tmp_path: Path) -> None:
    page, files = tmp_path / "page.md", []
    page.write_text("before\n<!-- aims -->\nold\n<!-- end of aims -->\nafter\n")
    for made in (SMALL, MIDDLE, LARGE):
        files.append(str(tmp_path / f"{made.scale}.json"))
        Path(files[-1]).write_text(made.model_dump_json())
    words = ["bench", "aims", *files]
    shown = CliRunner().invoke(app, [*words, "--json", "--docs", str(page)])
    assert shown.exit_code == 0, shown.output
    told = {aim["what"]: aim for aim in json.loads(shown.stdout)["aims"]}
    assert set(BY_NAME) < set(told)
    assert told["backfill of 1,096 windows"]["state"] == "missed"
    text = page.read_text()
    assert text.startswith("before\n<!-- aims -->\n") and text.endswith(
        "<!-- end of aims -->\nafter\n"
    )
    assert (
        "| backfill of 1,096 windows | at most 6.00 s | 7.00 s [6.86 s, 7.14 s] | missed |" in text
    )
    assert "old" not in text
    plain = CliRunner().invoke(app, words)
    assert "of 24 aims met" in plain.output


def test_the_summary_counts() -> None:
    few = at_scale("m", result("daily", "chunkmap", [1.0]), result("daily", "polars", [1.0]))
    judgements = judge(AIMS, [SMALL, few])
    assert summary(judgements) == (
        "3 of 21 aims met, 4 missed, 13 not measured, 1 with too few samples."
    )
    assert all(aim.command in build_aims_markdown(judgements) for aim in AIMS)


def test_the_documentation_has_each_aim_and_its_limit() -> None:
    page = (ROOT / "docs" / "guides" / "benchmarks.md").read_text("utf-8")
    table = page.partition("<!-- aims -->")[2].partition("<!-- end of aims -->")[0]
    for aim in (*AIMS, *(judgement.aim for judgement in judge_simulated())):
        assert f"| {aim.what} | {aim.limit_text()} |" in table, (
            "chunkmap bench aims --docs writes it"
        )
        assert aim.command in table
