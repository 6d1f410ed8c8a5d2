"""What must come out of workloads that reduce, filter or partition; the published answers."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from benchmarks import transforms
from benchmarks.suite import datasets, generating
from benchmarks.suite.answers import PUBLISHED, difference
from benchmarks.suite.datasets import Dataset, ensure
from benchmarks.suite.digest import digest_of
from benchmarks.suite.expected import expect
from benchmarks.suite.measure import Conditions, spec_of
from benchmarks.suite.settings import TRANSFORMS, VARIABLE
from benchmarks.suite.workloads import WORKLOADS, Workload
from pipeline.config.job import Job
from pipeline.config.settings import load_settings
from pipeline.runs.driver.run import run_serially
from pipeline.storage import Storage, open_storage, own_storage
from tests.support import tpch

pytestmark = pytest.mark.usefixtures("own_state")

MADE = {
    "measurements": lambda: generating.measurements(3, 2000, 500, 1),
    "row-groups": lambda: generating.row_groups(2, 20, 4, 1),
    "daily": lambda: generating.daily(4, 30, 1),
    "small": lambda: generating.small(3, 10, 2, 1),
    "one": lambda: generating.small(1, 10, 1, 1),
}


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv(VARIABLE, TRANSFORMS)
    made = {name: Dataset(name, "small", {"s": make}) for name, make in MADE.items()}
    monkeypatch.setattr(datasets, "DATASETS", made)
    return open_storage(load_settings())


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("stations", 0),
        ("daily", 0),
        ("backfill", 0),
        ("publish", 13),
        ("wait", 7),
        ("small-files", 3),
        ("fixed", 0),
    ],
)
def test_our_own_engine_writes_what_is_expected(
    storage: Storage, tmp_path: Path, name: str, tasks: int
) -> None:
    """The job of the workload, run serially; the expectation knows neither job nor engine."""
    workload, root = WORKLOADS[name], tmp_path.as_uri()
    card = ensure(storage, root, workload.dataset, "s")
    expected = expect(storage, root, workload, card, tasks)
    conditions = Conditions(root, "session", "s")
    spec = spec_of(
        conditions,
        workload,
        card,
        conditions.output("out"),
        iterations=1,
        workers=0,
        tasks=tasks,
    )
    job = Job.model_validate({**spec.job, "params": {k: 0.0 for k in spec.params}})
    summary = run_serially(job, load_settings(), own_storage())
    if tasks:
        assert summary.chunks == tasks
    assert digest_of(storage, spec.output, expected.schema).difference(expected.digest) == ""
    again = expect(storage, root, workload, card, tasks)
    assert again == expected, "it is kept, and the same when it is read"


def test_daily_is_written_in_hive_partitions(storage: Storage, tmp_path: Path) -> None:
    workload, root = WORKLOADS["daily"], tmp_path.as_uri()
    card = ensure(storage, root, "daily", "s")
    conditions = Conditions(root, "session", "s")
    output = conditions.output("out")
    spec = spec_of(conditions, workload, card, output, iterations=1, workers=0, tasks=0)
    run_serially(Job.model_validate(spec.job), load_settings(), own_storage())
    folders = {info.uri.removeprefix(output).split("/")[0] for info in storage.objects(output)}
    assert folders == {f"day=2022-01-0{day}" for day in (1, 2, 3, 4)}
    assert spec.keys == ("day",)


def test_combining_in_any_groups_comes_to_the_same() -> None:
    frames = [pl.read_parquet(io.BytesIO(body)) for _, body in MADE["measurements"]()]
    partials = [transforms.extremes(frame.lazy()) for frame in frames]
    first = transforms.all_extremes([transforms.all_extremes(partials[:2]), partials[2]])
    at_once = transforms.extremes(pl.concat(frames).lazy())
    found, wanted = (transforms.mean_extremes(lf).collect() for lf in (first, at_once))
    assert found.drop("mean").equals(wanted.drop("mean"))
    assert (found["mean"] - wanted["mean"]).abs().max() < 1e-9  # type: ignore[operator]


@pytest.fixture(scope="module")
def lineitem(tmp_path_factory: pytest.TempPathFactory) -> list[pl.DataFrame]:
    """In the plain types of our dataset."""
    files = sorted(tpch.lineitem(tmp_path_factory).glob("*.parquet"))
    plain = (generating.plain_types(pq.read_table(file)) for file in files)
    return [pl.DataFrame(pl.from_arrow(table)) for table in plain]


def test_a_file_of_tpch_holds_plain_types_in_row_groups() -> None:
    [(name, body)] = generating.tpch("supplier", 1, 1, 4_000)
    made = pq.ParquetFile(io.BytesIO(body))
    assert name == "supplier-0001.parquet"
    assert [made.metadata.row_group(n).num_rows for n in range(3)] == [4_000, 4_000, 2_000]
    kinds = {str(field.type) for field in made.schema_arrow}
    assert kinds <= {"int32", "int64", "double", "string", "date32[day]"}


@pytest.mark.long
@pytest.mark.integration
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_answers(lineitem: list[pl.DataFrame], name: str) -> None:
    found = _reduced(WORKLOADS[name], lineitem)
    assert difference(name, "s", found) == ""
    assert difference(name, "m", found.head(0)) == "", "only scale factor 1 is published"


def _reduced(workload: Workload, frames: list[pl.DataFrame]) -> pl.DataFrame:
    function = getattr(transforms, workload.transform)
    combined = getattr(transforms, workload.reduce["combine"])([function(f.lazy()) for f in frames])
    last = getattr(transforms, workload.reduce.get("finalize", "same"))
    result: pl.DataFrame = last(combined).collect()
    return result


def test_another_answer_than_the_published_one_is_told() -> None:
    right = pl.DataFrame({"revenue": [123141078.2283]})
    assert difference("tpch-q6", "s", right) == ""
    assert "123141079.23, published is" in difference("tpch-q6", "s", right + 1.0)
    assert "0 rows, published are 1" in difference("tpch-q6", "s", right.head(0))
    assert difference("row-map", "s", right) == ""


def test_a_wrong_expectation_is_refused(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = pl.DataFrame(
        {
            "l_shipdate": ["1994-05-05"],
            "l_discount": [0.06],
            "l_quantity": [3.0],
            "l_extendedprice": [100.0],
        }
    ).with_columns(pl.col("l_shipdate").str.to_date())
    made = partial(lambda: [("a.parquet", generating.parquet(lines.to_arrow(), 10))])
    monkeypatch.setattr(
        datasets, "DATASETS", {"lineitem": Dataset("lineitem", "small", {"s": made})}
    )
    card = ensure(storage, tmp_path.as_uri(), "lineitem", "s")
    with pytest.raises(
        RuntimeError, match=r"not the published answer: row 0, column revenue: 6\.0"
    ):
        expect(storage, tmp_path.as_uri(), WORKLOADS["tpch-q6"], card)
