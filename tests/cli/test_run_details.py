"""`chunkmap logs` and `report`, and `last`, on runs of the serial executor in local files."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from pipeline.config.job import load_job
from pipeline.config.settings import load_settings
from pipeline.runs.admin.known_outputs import remember_output
from pipeline.runs.driver.run import run_serially
from pipeline.runs.driver.summary import RunIncompleteError
from pipeline.storage import open_storage
from tests.support.forks import give

TRANSFORM = """
import polars as pl

def odd(lf, *, broken: bool = False):
    def fail(frame):
        if frame.height and broken and frame["n"][0] == 2:
            raise ValueError("the second is broken")
        return frame
    return lf.map_batches(fail)
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number in range(4):
        pl.DataFrame({"n": [number]}).write_parquet(tmp_path / "in" / f"{number}.parquet")
    (tmp_path / "conf").mkdir()
    name = f"odd_{abs(hash(tmp_path))}"
    (tmp_path / "conf" / "base.yaml").write_text(f"transforms: {{allow: [{name}]}}\n")
    (tmp_path / f"{name}.py").write_text(TRANSFORM)
    job = {
        "name": "odd",
        "input": {"uri": f"{tmp_path}/in"},
        "chunks": {"per_file": True},
        "transform": f"{name}:odd",
        "output": {"uri": f"{tmp_path}/out"},
        "retries": 0,
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    return tmp_path


def run(shop: Path, *changes: str) -> str:
    job, settings = load_job(shop / "job.yaml", changes), load_settings()
    storage = open_storage(settings)
    remember_output(settings.state_dir, job.output.uri)
    try:
        return run_serially(job, settings, storage).run
    except RunIncompleteError as error:
        return error.summary.run


def test_logs_list_each_attempt_and_show_what_failed(shop: Path) -> None:
    failed = run(shop, "params.broken=true")
    said = give("logs", cwd=shop)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count(" done ") == 3 and "1 → 1 rows" in said.stdout
    assert "the second is broken" in said.stdout and "in fail" in said.stdout
    told = json.loads(give("logs", failed[:6], "--failed", "--json", cwd=shop).stdout)
    assert told["run"] == failed and told["log"] is None
    (attempt,) = {item["index"] for item in told["attempts"]}
    of_one = json.loads(give("logs", "last", "--chunk", "0", "--json", cwd=shop).stdout)
    assert [item["index"] for item in of_one["attempts"]] == [0] != [attempt]
    limited = give("logs", "--limit", "1", cwd=shop)
    assert "the last 1 of " in limited.stdout
    assert (
        "no failed attempt of chunk 0" in give("logs", "--failed", "--chunk", "0", cwd=shop).stdout
    )


GROUPS = """
def partial(lf):
    return lf

def joined(frames):
    import polars as pl
    return pl.concat(frames)

def least(lf, *, bad: int = -1):
    if lf.collect()["n"][0] == bad:
        raise ValueError("this one is bad")
    return lf
"""


@pytest.mark.usefixtures("drawn")
def test_groups_are_shown_by_every_command(shop: Path) -> None:
    """`plan`, `check`, `status`, `logs` and `report` speak of what is mapped over groups."""
    job = json.loads((shop / "job.yaml").read_text())
    name = job["transform"].partition(":")[0]
    (shop / f"{name}.py").write_text(GROUPS)
    job |= {
        "transform": f"{name}:partial",
        "reduce": {"combine": f"{name}:joined"},
        "then": {"function": f"{name}:least", "by": ["n"]},
    }
    (shop / "job.yaml").write_text(json.dumps(job))
    planned = give("plan", "job.yaml", cwd=shop)
    assert f"{name}:least per group of n" in planned.stdout.replace("\n", " ").replace("  ", "")
    assert json.loads(give("plan", "job.yaml", "--json", cwd=shop).stdout)["then"]["by"] == ["n"]
    checked = json.loads(give("check", "job.yaml", "--json", cwd=shop).stdout)
    assert checked["group"]["key"] == "n=0" and checked["group"]["head"] == [{"n": 0}]
    assert "on the group n=0" in give("check", "job.yaml", cwd=shop).stdout
    bad = give("check", "job.yaml", "--set", "then.params.bad=0", cwd=shop)
    assert bad.returncode == 1 and "this one is bad (group n=0)" in bad.stderr

    failed = run(shop, "then.params.bad=2")
    status = give("status", failed, cwd=shop).stdout
    assert "3 of 4 pieces of the reduced result mapped, 1 failed" in " ".join(status.split())
    assert "1 piece failed" in status and "group n=2" in status
    told = json.loads(give("status", failed, "--json", cwd=shop).stdout)
    assert told["then"] == {"pieces": 4, "done": 3, "failed": 1, "rows_in": 3, "rows_out": 3}
    logs = give("logs", failed, cwd=shop).stdout
    assert "chunk 0" in logs and "piece 0" in logs
    assert "piece 2 on serial" in logs and "in least" in logs
    of_failed = json.loads(give("logs", failed, "--failed", "--json", cwd=shop).stdout)
    assert [(row["unit"], row["index"]) for row in of_failed["attempts"]] == [("piece", 2)]
    debugged = give("retry", failed, "--debug-piece", "2", cwd=shop)
    assert debugged.returncode == 1 and f"piece 2 of run {failed}: " in debugged.stdout
    assert "this one is bad (group n=2)" in debugged.stderr
    report = json.loads(give("report", failed, "--json", cwd=shop).stdout)
    written = json.loads((Path(report["local_report"]).parent / "report.json").read_text())
    assert written["groups"]["failed"] == 1
    assert written["groups"]["failures"][0]["where"] == "group n=2, 1 of the 1 in its piece"
    page = Path(report["local_report"]).read_text()
    assert "3 of 4 pieces of groups are mapped. 1 piece still failed at the end." in page

    done = run(shop)
    assert json.loads(give("status", done, "--json", cwd=shop).stdout)["then"]["done"] == 4


def test_last_is_the_newest_run(shop: Path) -> None:
    run(shop)
    newest = run(shop, "output.mode=overwrite", "input.filter=[[n, '>', 1]]")
    for command in (("status", "last"), ("logs", "last"), ("report", "last")):
        assert newest in json.dumps(json.loads(give(*command, "--json", cwd=shop).stdout))
    refused = give("publish", "last", cwd=shop)
    assert "Traceback" not in refused.stderr


@pytest.mark.usefixtures("drawn")
def test_a_run_names_both_copies_of_its_report(shop: Path) -> None:
    """The local one ends with the container of the command."""
    for _ in range(2):
        shown = "".join(give("run", "job.yaml", "--local", cwd=shop).stdout.split())
        assert "report.html(storedasfile://" in shown


@pytest.mark.usefixtures("drawn")
def test_the_report_is_fetched_or_made(shop: Path) -> None:
    done = run(shop)
    told = json.loads(give("report", "--json", cwd=shop).stdout)
    page = Path(told["local_report"])
    assert done in page.read_text() and told["report"].endswith(f"runs/{done}/report.html")
    page.unlink()
    stored = Path(told["report"].removeprefix("file://"))
    stored.unlink()
    assert f"reports/{done}/report.html" in give("report", done, cwd=shop).stdout
    assert page.exists() and stored.exists()


def test_a_run_that_does_not_exist_is_no_traceback(shop: Path) -> None:
    for command in ("logs", "report"):
        said = give(command, cwd=shop)
        assert (said.returncode, "no output is known" in said.stderr) == (2, True)
    run(shop)
    for command in ("logs", "report"):
        said = give(command, "zzz", cwd=shop)
        assert (said.returncode, "there is no run 'zzz'" in said.stderr) == (2, True)


def test_what_is_left_of_an_unknown_run_is_not_discarded(shop: Path) -> None:
    run(shop)
    said = give("vacuum", "out", "--discard", "zzz", cwd=shop)
    assert (said.returncode, "there is no run 'zzz'" in said.stderr) == (2, True)
