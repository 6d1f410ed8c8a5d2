"""Log lines as text and as JSON, with what they are about."""

import io
import json
import logging
import subprocess
import sys
from contextvars import copy_context
from threading import Thread

import pytest

from pipeline import logs


def line(formatter: logging.Formatter, **ids: str) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("here")
    logger.addHandler(handler)
    with logs.log_ids(**ids):
        try:
            raise ValueError('with "quotes"\nand lines')
        except ValueError:
            logger.exception("it %s", "failed")
    return stream.getvalue()


def test_json_is_one_object_a_line() -> None:
    text = line(logs.JsonFormatter(), run="abc", chunk="c1")
    assert text.count("\n") == 1
    said = json.loads(text)
    assert said["level"] == "error"
    assert said["logger"] == "here"
    assert said["message"] == "it failed"
    assert (said["run"], said["chunk"]) == ("abc", "c1")
    assert "ValueError" in said["error"]
    assert said["time"].endswith("Z")


def test_text_has_the_ids_at_the_end_of_its_first_line() -> None:
    first, *rest = line(logs.TextFormatter(), run="abc", batch="r1").splitlines()
    assert first.endswith("here: it failed [run=abc batch=r1]")
    assert rest[-1] == "    and lines"
    assert all(line.startswith("    ") for line in rest)
    assert line(logs.TextFormatter()).splitlines()[0].endswith("here: it failed")


def test_printed_lines_have_the_ids_whatever_the_level(caplog: pytest.LogCaptureFixture) -> None:
    stream = logs.PrintedLines()
    with caplog.at_level(logging.WARNING):
        print("one\ntw", end="", file=stream)
        thread = Thread(target=print, args=("from another",), kwargs={"file": stream})
        thread.start()
        thread.join()
        print("o", "\n\n", end="", file=stream)
        stream.write("x" * 2 * logs.MAX_PRINTED)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:3] == ["one", "from another", "two "] and len(lines) == 4
    assert {record.levelname for record in caplog.records} == {"PRINTED"}


def test_inner_ids_are_added_and_taken_off() -> None:
    with logs.log_ids(run="r"):
        with logs.log_ids(chunk="c"):
            assert logs.current_ids() == {"run": "r", "chunk": "c"}
        assert logs.current_ids() == {"run": "r"}
    assert logs.current_ids() == {}


def test_another_thread_knows_them_if_it_is_given_them() -> None:
    seen: list[dict[str, str]] = []
    with logs.log_ids(run="r"):
        context = copy_context()
        for call in (lambda: seen.append(logs.current_ids()), lambda: context.run(look)):

            def look() -> None:
                seen.append(logs.current_ids())

            thread = Thread(target=call)
            thread.start()
            thread.join()
    assert seen == [{}, {"run": "r"}]


@pytest.mark.parametrize("style", ["json", "text"])
def test_it_reaches_the_handlers_of_others(style: str) -> None:
    code = (
        "import logging, distributed\n"
        "from pipeline import logs\n"
        f"logs.set_up({style!r})\n"
        "with logs.log_ids(run='abc'):\n"
        "    logging.getLogger('distributed.worker').warning('theirs')\n"
        "    logging.getLogger('pipeline.runs.worker.batch').info('ours')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    for text, message in zip(lines, ("theirs", "ours"), strict=True):
        if style == "json":
            said = json.loads(text)
            assert (said["message"], said["run"]) == (message, "abc")
        else:
            assert text.endswith(f": {message} [run=abc]")


def test_a_level_keeps_the_rest_out() -> None:
    code = (
        "import logging, distributed\n"
        "from pipeline import logs\n"
        "logs.set_up('text', 'warning')\n"
        "for name in ('distributed.worker', 'pipeline.runs.worker.batch', 'examples.mine'):\n"
        "    logging.getLogger(name).info('not this')\n"
        "    logging.getLogger(name).warning('but this')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert [line.rpartition(": ")[2] for line in done.stderr.splitlines()] == ["but this"] * 3


@pytest.mark.sampled(2)
@pytest.mark.parametrize("style", ["json", "text"])
def test_a_driver_writes_lines_for_machines_alone(style: str) -> None:
    """Also where the handlers that there are have been told to keep quiet."""
    code = (
        "import logging\n"
        "from pipeline import logs\n"
        "muted = logging.StreamHandler()\n"
        "muted.setLevel(logging.CRITICAL + 1)\n"
        "logging.getLogger().addHandler(muted)\n"
        f"logs.set_up_driver({style!r})\n"
        "with logs.log_ids(backfill='abc'):\n"
        "    logging.getLogger('pipeline.runs.driver.run').info('round 1')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    said = [(line["message"], line["backfill"]) for line in lines]
    assert said == ([("round 1", "abc")] if style == "json" else [])
