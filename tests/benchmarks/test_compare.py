import json
import re
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from benchmarks.suite.compare import changes, comparisons, lost
from benchmarks.suite.record import Noise, Record, Traffic
from benchmarks.suite.stats import noise_floor
from pipeline.cli.app import app
from pipeline.errors import UsageError
from tests.support.benchmark_records import around, bad, full_record, record, result


def of(ratio: float, day: int = 1) -> Record:
    """A record in which chunkmap takes so many times Polars' seconds."""
    return record(
        result("row-map", "chunkmap", around(ratio)),
        result("row-map", "polars", around(1.0)),
        day=day,
    )


def test_comparisons_of_a_full_record() -> None:
    said = {
        (comparison.workload, comparison.theirs.subject): comparison
        for comparison in comparisons(full_record().model_copy(update={"scale": "m"}))
    }
    assert said["row-map", "polars"].said == "no difference"
    assert said["row-map", "duckdb"].said == "faster"
    assert said["few-rows", "polars"].said == "slower"
    assert said["row-map", "daft"].found is None
    assert said["row-map", "polars"].met is False
    assert said["row-map", "duckdb"].met is True
    assert said["row-map", "ray-data"].met is True
    assert said["row-map", "daft"].met is None
    assert not any(workload == "wait" for workload, _ in said)


def test_processor_time_and_bytes_are_compared_too() -> None:
    (compared,) = comparisons(of(2.0))
    assert compared.cpu is not None
    assert compared.cpu.value == pytest.approx(2.0)
    assert compared.size == 1.0
    assert compared.ours.requests_per_file() == 105 / 50


def test_an_aim_holds_for_its_scales() -> None:
    for scale, aim in (("s", None), ("m", 0.95), ("l", 0.90)):
        (compared,) = comparisons(of(0.92).model_copy(update={"scale": scale}))
        assert (compared.aim, compared.met) == (aim, None if aim is None else aim > 0.92)


def test_an_aim_is_not_met_by_one_sample() -> None:
    (compared,) = comparisons(
        record(result("row-map", "chunkmap", [1.0]), result("row-map", "polars", [2.0]))
    )
    assert (compared.said, compared.met) == ("too few samples", None)


def test_the_cost_of_a_task_is_compared_at_the_largest_number_of_each() -> None:
    said = {
        comparison.theirs.subject: comparison
        for comparison in comparisons(full_record())
        if comparison.ours.tasks
    }
    assert said["ray-data"].ours.tasks == 10_000
    assert said["prefect-naive"].theirs.tasks == 200
    assert said["prefect-naive"].found is not None
    assert said["prefect-naive"].found.value == pytest.approx(3e-4 / 0.1)


def test_without_an_a_a_run_nothing_is_a_difference() -> None:
    blind = full_record().model_copy(update={"noise": None})
    assert {comparison.said for comparison in comparisons(blind) if comparison.found} == {
        "no difference"
    }


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(1.0, 1.5, "worse"), (1.0, 1.01, "no difference"), (1.5, 1.0, "better")],
)
def test_changes(before: float, after: float, said: str) -> None:
    change, size, requests = changes(of(before), of(after, 2))
    assert (size.what, requests.what) == ("bytes", "requests")
    assert size.says == requests.says == "no difference"
    assert (change.says, change.is_regression) == (said, said == "worse")


def test_a_slower_machine_is_no_regression() -> None:
    """Ratios are compared, never seconds."""
    slow = record(
        result("row-map", "chunkmap", around(10.0)), result("row-map", "polars", around(10.0))
    )
    assert not any(change.is_regression for change in changes(of(1.0), slow))


@pytest.mark.parametrize(("more", "says"), [(5, "no difference"), (20, "worse"), (-40, "better")])
def test_more_requests_are_a_regression(more: int, says: str) -> None:
    """Of 105 requests; as many as the peer's before."""
    made = of(0.5, 2)
    ours, theirs = made.results
    traffic = Traffic(requests={"GetObject": {"206": 105 + more}}, bytes_read=1, bytes_written=1)
    results = (ours.model_copy(update={"traffic": traffic}), theirs)
    *_, requests = changes(of(1.0), made.model_copy(update={"results": results}), 0.3)
    assert (requests.name, requests.says) == ("row-map against polars, requests", says)
    uncounted = (ours.model_copy(update={"traffic": None}), theirs)
    compared = changes(of(1.0), made.model_copy(update={"results": uncounted}))
    assert [change.what for change in compared] == ["seconds", "bytes"]


@pytest.mark.parametrize(
    ("factor", "says"), [(1.04, "no difference"), (1.1, "worse"), (0.9, "better")]
)
def test_a_larger_output_is_a_regression(factor: float, says: str) -> None:
    """However fast it was written, and however noisy the machine."""
    made = of(0.5, 2)
    ours, theirs = made.results
    process = ours.processes[0]
    iterations = tuple(
        each.model_copy(update={"bytes": each.bytes and int(each.bytes * factor)})
        for each in process.iterations
    )
    larger = ours.model_copy(
        update={"processes": (process.model_copy(update={"iterations": iterations}),)}
    )
    _, size, _ = changes(of(1.0), made.model_copy(update={"results": (larger, theirs)}), 0.3)
    assert (size.what, size.says) == ("bytes", says)
    assert size.name == "row-map against polars, bytes"


def test_what_failed_since_is_lost() -> None:
    after = record(
        bad("row-map", "chunkmap", "wrong", "2 rows"), result("row-map", "polars", around(1.0))
    )
    assert lost(of(1.0), after) == ["row-map against polars: chunkmap wrong"]
    assert lost(of(1.0), of(1.5)) == []


@pytest.mark.parametrize(("ratio", "code"), [(1.01, 0), (1.5, 1)])
def test_the_gate(tmp_path: Path, ratio: float, code: int) -> None:
    for name, made in (("before", of(1.0)), ("after", of(ratio, 2))):
        (tmp_path / f"{name}.json").write_text(made.model_dump_json())
    words = ["bench", "gate", str(tmp_path / "after.json")]
    words += ["--baseline", str(tmp_path / "before.json")]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == code, shown.output
    assert ("worse" in shown.output) is bool(code)
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert told["worse"] == ["row-map against polars"] * code
    seconds, *_ = told["changes"]
    assert (seconds["before"], seconds["after"]) == (1.0, pytest.approx(ratio))


@pytest.mark.parametrize(
    ("change", "words", "hint"),
    [
        ({"scale": "m"}, "is of scale s, and .* of m", "chunkmap bench history"),
        ({"complete": False}, "is not complete", "chunkmap bench run --resume 2026"),
    ],
)
def test_other_scales_and_sessions_under_way_are_not_compared(
    tmp_path: Path, change: dict[str, object], words: str, hint: str
) -> None:
    before, after = str(tmp_path / "before.json"), str(tmp_path / "after.json")
    Path(before).write_text(of(1.0).model_dump_json())
    Path(after).write_text(of(1.0, 2).model_copy(update=change).model_dump_json())
    for command in (["gate", after, "--baseline", before], ["compare", before, after]):
        shown = CliRunner().invoke(app, ["bench", *command])
        assert isinstance(shown.exception, UsageError)
        assert re.search(words, shown.exception.message)
        assert hint in str(shown.exception.hint)


@pytest.mark.parametrize(("ratio", "code"), [(1.2, 0), (2.0, 1)])
def test_the_gate_with_a_least_difference(tmp_path: Path, ratio: float, code: int) -> None:
    for name, made in (("before", of(1.0)), ("after", of(ratio, 2))):
        (tmp_path / f"{name}.json").write_text(made.model_dump_json())
    words = ["bench", "gate", str(tmp_path / "after.json"), "--least", "0.3"]
    shown = CliRunner().invoke(app, [*words, "--baseline", str(tmp_path / "before.json")])
    assert shown.exit_code == code, shown.output


def drawn(seed: int, factor: float = 1.0) -> Record:
    """A short session on a busy machine: times scatter by a fifth, here and in the A/A run."""
    random = Random(seed)

    def some(middle: float) -> list[float]:
        return [middle * random.lognormvariate(0, 0.2) for _ in range(6)]

    made = record(result("row-map", "chunkmap", some(factor)), result("row-map", "polars", some(1)))
    pairs = {"chunkmap": (tuple(some(1.0)), tuple(some(1.0)))}
    noise = Noise(workload="row-map", pairs=pairs, floor=noise_floor(list(pairs.values())))
    return made.model_copy(update={"noise": noise})


def test_noise_does_not_fail_the_gate_and_a_regression_does() -> None:
    """A hundred pairs of sessions of the same code, and of code that takes three times as long."""
    same = [changes(drawn(n), drawn(1000 + n), 0.3)[0].is_regression for n in range(100)]
    slow = [changes(drawn(n), drawn(1000 + n, 3.0), 0.3)[0].is_regression for n in range(100)]
    assert sum(same) == 0
    assert sum(slow) >= 90


def test_the_gate_fails_when_a_subject_fails(tmp_path: Path) -> None:
    failed = record(
        bad("row-map", "chunkmap", "failed", "x"), result("row-map", "polars", around(1.0))
    )
    for name, made in (("before", of(1.0)), ("after", failed)):
        (tmp_path / f"{name}.json").write_text(made.model_dump_json())
    words = ["bench", "gate", str(tmp_path / "after.json"), "--json"]
    shown = CliRunner().invoke(app, [*words, "--baseline", str(tmp_path / "before.json")])
    assert shown.exit_code == 1
    assert "chunkmap failed" in shown.stdout
