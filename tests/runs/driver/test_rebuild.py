"""Changed code, input or job is named, and `--rebuild` replaces the result of a job."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import ConflictError, OutputNotEmptyError, UsageError
from pipeline.runs.driver.summary import RunIncompleteError
from tests.support.small import Small

CODE = """
import polars as pl

RATE = 2

def convert(column):
    return column * RATE

def euros(frame, factor=1):
    return frame.select(euros=convert(pl.col("id")) * factor)

def fails(frame):
    def check(values):
        if 1 in values:
            raise ValueError("one")
        return values
    return frame.select(pl.col("id").map_batches(check, return_dtype=pl.Int64))
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    for number in range(3):
        small.write(f"{number}.parquet", pl.DataFrame({"id": [number]}))
    return small


def euros(small: Small) -> list[int]:
    return sorted(small.rows()["euros"].to_list())


def test_changed_code_is_named_and_rebuilt(small: Small) -> None:
    job = small.job("euros", mode="error")
    first = small.run(job)
    small.code(CODE.replace("column * RATE", "column * RATE + 1"))
    with pytest.raises(OutputNotEmptyError) as caught:
        small.run(job)
    assert caught.value.message.endswith(
        f"3 files of run {first.run}, and the mode is `error`: the code has changed since "
        "(in `convert`)"
    )
    assert "--rebuild" in str(caught.value.hint)
    assert euros(small) == [0, 2, 4]

    second = small.run(job, rebuild=True)
    assert second.run != first.run
    assert euros(small) == [1, 3, 5]
    # The same job again is complete, with and without the flag.
    for rebuild in (False, True):
        again = small.run(job, rebuild=rebuild)
        assert (again.run, again.mapped) == (second.run, 0)

    small.code(CODE.replace("RATE = 2", "RATE = 3"))
    with pytest.raises(OutputNotEmptyError, match=f"of run {second.run}.*in `RATE`, `convert`"):
        small.run(job)


def test_a_changed_job_or_input_is_named(small: Small) -> None:
    small.run(small.job("euros", mode="error"))
    other = small.job("euros", mode="error", params={"factor": 5})
    with pytest.raises(
        OutputNotEmptyError, match=r"the job has changed since \(in params.factor\)"
    ):
        small.run(other)
    small.write("9.parquet", pl.DataFrame({"id": [9]}))
    with pytest.raises(OutputNotEmptyError, match="1 object added, 0 removed, 0 changed"):
        small.run(small.job("euros", mode="error"))
    small.run(other, rebuild=True)
    assert euros(small) == [0, 10, 20, 90]


def test_an_interrupted_rebuild_is_resumed_by_the_plain_command(small: Small) -> None:
    small.run(small.job("euros", mode="error"))
    job = small.job("fails", mode="error")
    with pytest.raises(RunIncompleteError) as caught:
        small.run(job, rebuild=True)
    assert euros(small) == [0, 2, 4]  # Nothing is replaced before all of it is done.
    with pytest.raises(ConflictError, match=r"the code has changed since \(in `fails`\)"):
        small.code(CODE.replace("1 in values", "7 in values"))
        small.run(job)
    done = small.run(job, accept_code=True)
    assert done.run == caught.value.summary.run
    assert small.rows()["id"].sort().to_list() == [0, 1, 2]


def test_a_rebuild_never_replaces_what_another_job_has_published(small: Small) -> None:
    small.run(small.job("euros", mode="error"))
    other = small.job("euros", mode="error", name="other", params={"factor": 2})
    with pytest.raises(UsageError, match="which is of another job"):
        small.run(other, rebuild=True)
    with pytest.raises(UsageError, match="this job appends"):
        small.run(small.job("euros", mode="append"), rebuild=True)
    assert euros(small) == [0, 2, 4]
