"""Text from data, files and users reaches no terminal as more than text, whatever the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from xml.sax.saxutils import escape

import polars as pl
import pytest

from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.ledger.records import Failure
from pipeline.storage import Storage
from pipeline.storage.local_backend import LocalBackend
from tests.support.hostile_text import ESCAPES, HOSTILE, assert_harmless, give
from tests.support.runs_by_hand import Run, job_of, plan_of

TRANSFORMS = f"""
import polars as pl

def same(lf):
    return lf

def renamed(lf):
    return lf.rename({{lf.collect_schema().names()[0]: {HOSTILE!r} + "2"}})

def fails(lf):
    def fail(frame):
        if frame.height:
            raise ValueError({HOSTILE!r} + "\\nnext:  " + frame[frame.columns[0]][0])
        return frame
    return lf.map_batches(fail)

def breaks(lf):
    raise RuntimeError({HOSTILE!r} + "\\nnext:  forged")
"""


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def terminal(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with hostile data, and a transform of each kind."""
    folder = tmp_path / "in" / "kind=a"
    folder.mkdir(parents=True)
    values = [HOSTILE, *ESCAPES.values(), "line\nnext:  forged"]
    frame = pl.DataFrame({HOSTILE: values, "n": range(len(values))})
    frame.write_parquet(folder / f"{HOSTILE.replace('/', '_')[:60]}.parquet")
    (tmp_path / "shop.py").write_text(TRANSFORMS)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "base.yaml").write_text("transforms: {allow: [shop]}\n")
    return tmp_path


def job(folder: Path, transform: str, **more: Any) -> str:
    data = {
        "name": "hostile",
        "input": {"uri": f"file://{folder}/in/"},
        "transform": transform,
        "output": {"uri": f"file://{folder}/out/"},
        **more,
    }
    (folder / "job.yaml").write_text(json.dumps(data))
    return "job.yaml"


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("command", "transform"),
    [("check", "renamed"), ("check", "fails"), ("check", "breaks"), ("plan", "same")],
)
def test_data_and_errors_of_transforms(
    shop: Path, terminal: bool, command: str, transform: str
) -> None:
    flags = ("--rows", "20") if command == "check" else ("--explain",)
    printed = give(shop, command, job(shop, f"shop:{transform}"), *flags, terminal=terminal)
    assert_harmless(printed, terminal=terminal)
    lines = printed.text.replace("\r", "").splitlines()
    assert not [line for line in lines if line.startswith("next:  forged")]
    if command == "check":
        assert printed.code == (0 if transform == "renamed" else 1), printed.text
        for part in ("\\x1b[31;1mred", "\\x9b31m", "\\u202eevil", "[link=http://evil.example/]"):
            assert part in "".join(printed.text.split()), part


def test_json_is_valid_and_ascii(shop: Path, terminal: bool) -> None:
    printed = give(shop, "check", job(shop, "shop:same"), "--json", terminal=terminal)
    assert_harmless(printed, terminal=terminal)
    assert printed.code == 0
    assert HOSTILE in json.loads(printed.out)["head"][0]
    failed = give(shop, "check", job(shop, "shop:fails"), "--json", terminal=False)
    assert_harmless(failed, terminal=False)
    assert HOSTILE in json.loads(failed.out)["message"]


def test_errors_about_jobs_and_settings(shop: Path, terminal: bool) -> None:
    path = job(shop, "shop:same", **{HOSTILE: 1, "name": HOSTILE, "retries": HOSTILE})
    assert_harmless(give(shop, "plan", path, terminal=terminal), terminal=terminal)
    path = job(shop, "shop:same", input={"uri": f"file://{shop}/in/", "columns": [HOSTILE + "x"]})
    printed = give(shop, "plan", path, terminal=terminal)
    assert printed.code == 2
    assert_harmless(printed, terminal=terminal)
    (shop / "conf" / "base.yaml").write_text(json.dumps({"dask": {HOSTILE: 1, "workers": HOSTILE}}))
    assert_harmless(give(shop, "config", terminal=terminal), terminal=terminal)
    values = {"dask": {"cluster_kwargs": {HOSTILE: [HOSTILE]}}}
    (shop / "conf" / "base.yaml").write_text(json.dumps(values))
    printed = give(shop, "config", terminal=terminal)
    assert printed.code == 0
    assert_harmless(printed, terminal=terminal)


def test_arguments_of_the_command_line(shop: Path) -> None:
    every: tuple[tuple[str, ...], ...] = (
        ("plan", HOSTILE + ".yaml"),
        (HOSTILE,),
        ("plan", "job.yaml", "--" + HOSTILE),
        ("check", "job.yaml", "--rows", HOSTILE),
        ("plan", "job.yaml", HOSTILE),
        ("config", "-e", HOSTILE),
        ("verify", f"file://{shop}/{HOSTILE}/"),
        ("history", f"file://{shop}/{HOSTILE}/"),
        ("status", "-o", f"file://{shop}/{HOSTILE}/"),
    )
    for arguments in every:
        printed = give(shop, *arguments, terminal=True)
        assert_harmless(printed, terminal=True)
        assert printed.code == 2 or arguments[0] in ("history", "status"), printed.text


def test_tracebacks_warnings_and_prints(shop: Path, terminal: bool) -> None:
    broken = (
        "import logging, sys, warnings, pipeline.cli.status as states\n"
        "def broken(*args, **options):\n"
        f"    text = {HOSTILE!r}\n"
        "    warnings.warn(text)\n"
        "    logging.getLogger('a.library').warning('%s', text)\n"
        "    print(text); print(text, file=sys.stderr)\n"
        "    raise KeyError(0) from RuntimeError(text)\n"
        "states.config = broken\n"
    )
    main = f"{broken}from pipeline.cli import main\nmain()"
    printed = give(shop, "config", terminal=terminal, code=main)
    assert printed.code == 1
    assert printed.text.count("\\x1b[31;1mred") >= 5
    assert_harmless(printed, terminal=terminal)


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_what_a_stored_run_says_of_itself(
    shop: Path, terminal: bool, flags: tuple[str, ...]
) -> None:
    """Names of workers, errors, messages: from storage, where any worker may write them."""
    output = f"file://{shop}/out/"
    storage = Storage({"file": LocalBackend()})
    made = job_of(output=output)
    plan = plan_of(2)
    run = Run(storage, Ledger.create(storage, made, plan, "code", 0), plan)
    words = HOSTILE + "\nnext:  forged"
    chunk = plan.chunk(0)
    # The second is refused, and told: on stderr, which a terminal shows between lines of JSON.
    for attempt in ("a" * 32, *(() if flags else (words,))):
        run.store(Failure(chunk.id, 0, "b", attempt, words, 1.0, words, words, False, words))
    record = run.record.model_copy(update={"job": words, "mode": words, "transform": words})
    storage.put(run.ledger.prefix + "run.json", record.model_dump_json().encode())
    for arguments in (("status", run.ledger.run, "-o", output), ("status", "-o", output)):
        printed = give(shop, *arguments, *flags, terminal=terminal)
        assert printed.code == 0, printed.text
        assert_harmless(printed, terminal=terminal)
        assert "\nnext:  forged" not in printed.text.replace("\r", "")
        if flags:
            said = json.loads(printed.out)
            assert words in (said if "job" in said else said["runs"][0])["job"]
        else:
            assert "\\x1b[31;1mred" in "".join(printed.text.split())


class _Server(BaseHTTPRequestHandler):
    """An S3 server whose errors are hostile."""

    def do_GET(self) -> None:
        """Refuse, in words that are valid XML."""
        words = "".join(c for c in HOSTILE if c.isprintable() or c in "\x9b\x9d\x9c\u202e\u2066")
        body = f"<Error><Code>{escape(words)}</Code><Message>{escape(words)}</Message></Error>"
        self.send_response(400)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as listening:
        thread = Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def test_messages_of_servers(shop: Path, terminal: bool, server: str) -> None:
    environment = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "r",
    }
    for arguments in (("verify", "s3://bucket/x/"), ("status", "-o", "s3://bucket/x/")):
        printed = give(shop, *arguments, terminal=terminal, environment=environment)
        assert printed.code != 0
        assert "evil.example" in printed.text, printed.text
        assert_harmless(printed, terminal=terminal)
