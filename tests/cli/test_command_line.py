"""The command line by itself: help, usage errors, one object on stdout whatever happens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.forks import MAIN, REPOSITORY, give

COMMAND = (sys.executable, "-P", "-c")


def start(*arguments: str, code: str = MAIN) -> subprocess.CompletedProcess[str]:
    """Give a command to an interpreter of its own, with what it imports itself."""
    return subprocess.run(
        [*COMMAND, code, *arguments],
        env={**os.environ, "PYTHONPATH": REPOSITORY, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_imports_nothing_slow() -> None:
    look = """
import sys
from pipeline.cli import main
sys.modules["pipeline.cli.app"].exit_process = sys.exit  # to look around before this process ends
slow = {"prefect", "distributed", "dask", "polars", "pyarrow", "obstore", "botocore", "s3fs"}
for words in ("--help", "run --help", "backfill create --help"):
    sys.argv[1:] = words.split()
    try:
        main()
    except SystemExit as end:
        assert not end.code
    print(words, sorted(slow & set(sys.modules)), file=sys.stderr)
"""
    said = start(code=look)
    shown = "--help []\nrun --help []\nbackfill create --help []\n"
    assert (said.returncode, said.stderr) == (0, shown)


def test_help_names_every_exit_code() -> None:
    said = give("--help").stdout
    for code in ("0 done", "1 the run failed", "2 bad", "3 conflict", "130"):
        assert code in " ".join(said.split())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("runn",), "run"),
        (("run",), "JOB.yaml"),
        (("run", "x.yaml", "--replann"), "--replan"),
        (("run", "x.yaml", "--debug-chunk", "0", "--detach"), "--detach and --debug-chunk exclude"),
        (("retry", "last", "--debug-chunk", "0", "--failed"), "--failed and --debug-chunk exclude"),
        (("status", "3f2a", "--state", "done"), "--state and the id of a run exclude"),
        (("status", "3f2a", "--all"), "--all and the id of a run exclude"),
    ],
)
def test_usage_errors_exit_2(tmp_path: Path, arguments: tuple[str, ...], part: str) -> None:
    said = give(*arguments, cwd=tmp_path)
    assert (said.returncode, said.stdout) == (2, "")
    assert part in said.stderr
    as_json = give(*arguments, "--json", cwd=tmp_path)
    assert as_json.returncode == 2
    error = json.loads(as_json.stdout)
    assert (error["error"], error["exit_code"]) == ("UsageError", 2)
    assert part in error["message"]


@pytest.mark.parametrize("command", [("cluster", "status"), ("backfill", "status", "last")])
def test_what_is_refreshed_is_not_one_object(tmp_path: Path, command: tuple[str, ...]) -> None:
    said = give(*command, "--watch", "--json", cwd=tmp_path)
    assert said.returncode == 2
    error = json.loads(said.stdout)
    assert error["message"] == "--watch and --json exclude each other: use one of them"


def test_a_setting_that_is_wrong_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "base.yaml").write_text("batches:\n  secnds: 3\n")
    said = give("config", "--json", cwd=tmp_path)
    assert said.returncode == 2
    error = json.loads(said.stdout)
    assert error["error"] == "SettingsError"
    assert "conf/base.yaml:2" in error["message"]
    assert "seconds" in error["message"]
    assert f"error: {error['message']}" in said.stderr


def test_status_where_nothing_ever_ran(tmp_path: Path) -> None:
    said = give("status", cwd=tmp_path)
    assert said.returncode == 2
    assert "next:  name it with --output" in said.stderr


def test_a_bug_keeps_its_traceback_and_is_still_one_object(tmp_path: Path) -> None:
    broken = """
import pipeline.cli.status
pipeline.cli.status.config = None
from pipeline.cli import main
main()
"""
    said = give("config", "--json", cwd=tmp_path, code=broken)
    assert said.returncode == 1
    assert json.loads(said.stdout)["exit_code"] == 1
    assert "Traceback" in said.stderr


def test_check_says_what_the_fingerprint_covers(tmp_path: Path) -> None:
    import polars as pl

    (tmp_path / "in").mkdir()
    pl.DataFrame({"a": [1, 2]}).write_parquet(tmp_path / "in" / "a.parquet")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "base.yaml").write_text("transforms: {allow: [shop]}\n")
    source = "N = 2\n\ndef plain(lf):\n    return lf.head(N)\n\n"
    source += "def dynamic(lf):\n    return eval('lf')\n"
    (tmp_path / "shop.py").write_text(source)
    for function in ("plain", "dynamic"):
        job = {
            "name": "a",
            "input": {"uri": str(tmp_path / "in")},
            "transform": f"shop:{function}",
            "output": {"uri": str(tmp_path / "out")},
        }
        (tmp_path / "job.yaml").write_text(json.dumps(job))
        said = give("check", "job.yaml", cwd=tmp_path)
        assert said.returncode == 0, said.stderr
        is_dynamic = function == "dynamic"
        assert f", of {'3' if is_dynamic else '2'} definitions" in said.stdout
        assert ("shop: it uses eval (line 7), so every change" in said.stderr) is is_dynamic
        found = json.loads(give("check", "job.yaml", "--json", cwd=tmp_path).stdout)
        assert found["code"].startswith("v2-")
        assert len(found["notes"]) == is_dynamic


def test_a_command_without_words_shows_its_help(tmp_path: Path) -> None:
    said = give(cwd=tmp_path)
    assert said.returncode == 2
    assert "Usage" in said.stdout + said.stderr


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    without = """
import sys
sys.modules["simpy"] = None  # as if it were not installed
"""
    arguments = ("bench", "simulate", "--workers", "2", "--chunks", "10", "--bytes", "1GB")
    said = give(*arguments, code=without + MAIN)
    assert said.returncode == 2, said.stderr
    assert "this command needs simpy" in said.stderr
    assert "pip install 'chunkmap[bench]'" in said.stderr
    assert "Traceback" not in said.stderr
