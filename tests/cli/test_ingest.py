"""`chunkmap ingest`: what it shows, prints and exits with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ingest.conftest import orders
from tests.servers.api import Api, Reply, serving
from tests.support.forks import give

FILE = """\
name: orders
http:
  url: {url}
  retries: 0
  pages: {{by: cursor, parameter: after, path: meta.next}}
  records: data
output: {{uri: out, mode: append}}
"""


@pytest.fixture
def api() -> Iterator[Api]:
    with serving(Api(orders(25), by="cursor")) as api:
        yield api


def test_a_first_ingest_one_that_is_done_and_a_json_object(api: Api, tmp_path: Path) -> None:
    (tmp_path / "orders.yaml").write_text(FILE.format(url=api.url), "utf-8")
    api.script = lambda query, times: Reply(503) if "c20" in query else None
    failed = give("ingest", "orders.yaml", cwd=tmp_path)
    assert failed.returncode == 1
    assert "503" in failed.stderr
    assert "give the command again" in " ".join(failed.stderr.split())
    assert "Traceback" not in failed.stderr
    api.script = lambda query, times: None
    done = give("ingest", "orders.yaml", cwd=tmp_path)
    assert (done.returncode, "3 (1 asked for now)" in done.stdout) == (0, True), done.stderr
    again = give("ingest", "orders.yaml", "--json", cwd=tmp_path)
    summary = json.loads(again.stdout)
    assert (summary["already"], summary["rows"], summary["manifest"]) == (True, 25, 1)
    assert again.stderr == ""
    shown = give("history", "out", cwd=tmp_path).stdout
    assert summary["ingest"] in shown
    refused = give("ingest", "orders.yaml", "--refresh", "--json", cwd=tmp_path)
    assert (refused.returncode, json.loads(refused.stdout)["error"]) == (2, "UsageError")


def test_wrong_files_and_credentials_exit_2(api: Api, tmp_path: Path) -> None:
    (tmp_path / "orders.yaml").write_text(FILE.format(url=api.url), "utf-8")
    wrong = give("ingest", "orders.yaml", "--set", "http.urls=x", cwd=tmp_path)
    assert (wrong.returncode, "did you mean `url`?" in wrong.stderr) == (2, True)
    missing = give("ingest", "orders.yaml", "--set", "http.auth.env=NO_SUCH_TOKEN", cwd=tmp_path)
    assert (missing.returncode, "export NO_SUCH_TOKEN=…" in missing.stderr) == (2, True)
    api.script = lambda query, times: Reply(401)
    denied = give("ingest", "orders.yaml", cwd=tmp_path)
    assert (denied.returncode, "401" in denied.stderr) == (2, True)
    block = give("ingest", "orders.yaml", "--set", "http.auth.secret=shop", cwd=tmp_path)
    assert (block.returncode, "no Prefect" in " ".join(block.stderr.split())) == (2, True)
