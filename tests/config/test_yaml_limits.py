"""YAML that is made to be work: refused within moments, with file and line, wherever it is read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.config.job import Job, load_job, parse_job
from pipeline.config.settings import load_settings
from pipeline.config.yaml_file import parse_yaml
from pipeline.config.yaml_loader import MAX_ALIASED_NODES, MAX_BYTES, MAX_DEPTH
from pipeline.errors import JobError, SettingsError, UsageError
from pipeline.storage import Storage
from tests.support.memory_storage import MemoryBackend
from tests.support.runs_by_hand import job_of, plan_of, run_of

JOB = "name: a\ninput: {uri: s3://b/in/}\ntransform: a.b:c\noutput: {uri: s3://b/out/}\n"

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
MERGED = "a0: &a0 {x0: 1, y0: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], x{n}: 1}}\n" for n in range(1, 30)
)
KEYS = "? &a0 [x, x]\n: 1\n" + "".join(
    f"? &a{n} [*a{n - 1}, *a{n - 1}]\n: 1\n" for n in range(1, 60)
)
DEEP_CHAIN = "a0: &a0 " + "[" * 60 + "]" * 60 + "\na1: &a1 " + "[" * 60 + "*a0" + "]" * 60 + "\n"


@contextmanager
def quickly() -> Iterator[None]:
    clock = time.process_time()
    yield
    assert time.process_time() - clock < 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(LAUGHS, r"f:6: not YAML: aliases repeat more than 100,000 values", id="list"),
        pytest.param(MERGED, r"f:6: not YAML: aliases repeat more than 100,000", id="merged"),
        pytest.param(KEYS, r"f:\d+: not YAML: aliases repeat more than 100,000", id="keys"),
        pytest.param("a:\n  - &b [*b]\n", r"f:2: not YAML: an alias inside the value", id="itself"),
        pytest.param("a: &a\n  b: &b\n    - *a\n", r"f:3: not YAML: an alias inside", id="above"),
        pytest.param("a:\n " + "[" * 200_000, r"f:2: not YAML: nested deeper than 100", id="lists"),
        pytest.param("a:\n " + "{a: " * 200_000, r"f:2: not YAML: nested deeper", id="mappings"),
        pytest.param("a:\n" + "- " * 200_000 + "1\n", r"f:2: not YAML: nested deeper", id="block"),
        pytest.param("a: 1\n" + "? " * 200_000, r"f:2: not YAML: nested deeper than", id="in keys"),
        pytest.param(DEEP_CHAIN, r"f:2: not YAML: nested deeper than 100", id="by aliases"),
        pytest.param("a: 1\n" * 20 + "b: " + "x" * MAX_BYTES, r"f:21: larger than", id="size"),
        pytest.param("a: 1\nb: 2024-13-01\n", r"f:2: not YAML: month must be", id="no such date"),
        pytest.param(f"a: 1\nb: {'9' * 5000}\n", r"f:2: not YAML: Exceeds the limit", id="digits"),
    ],
)  # fmt: skip
def test_bombs_are_refused_with_their_line(text: str, said: str) -> None:
    with quickly(), pytest.raises(JobError, match=said):
        parse_yaml(text, "f", JobError)


def test_what_is_within_the_limits_is_read() -> None:
    ten = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n"
    text = ten + f"b: [{', '.join(['*a'] * (MAX_ALIASED_NODES // 11))}]\n"
    data = parse_yaml(text, "f", JobError).data
    assert len(data["b"]) == MAX_ALIASED_NODES // 11
    assert data["b"][-1] == data["a"] == list(range(1, 11))
    levels = MAX_DEPTH - 1
    deep = parse_yaml("a: " + "[" * levels + "]" * levels, "f", JobError).data["a"]
    for _ in range(levels - 1):
        (deep,) = deep
    assert deep == []
    large = "a: " + "x" * (MAX_BYTES - 3)
    assert len(parse_yaml(large, "f", JobError).data["a"]) == MAX_BYTES - 3


def test_lines_of_what_aliases_repeat_are_those_of_the_anchor() -> None:
    file = parse_yaml("a: &a\n  b: 1\nc: *a\nd:\n  <<: *a\n  e: 2\n", "f", JobError)
    assert file.data["d"] == {"b": 1, "e": 2}
    assert (file.line(("c", "b")), file.line(("d", "e"))) == (2, 6)


@pytest.mark.parametrize(
    "written", ["password: *hunter2\n", "password: !hunter2\n", "password: !hunter2 x\n"]
)
def test_words_that_only_look_like_yaml_are_not_repeated(written: str) -> None:
    with pytest.raises(SettingsError, match=r"f:2: .*quote text that begins with") as caught:
        parse_yaml("a: 1\n" + written, "f", SettingsError)
    assert "hunter2" not in str(caught.value) + repr(caught.value)


# -- wherever it is read ----------------------------------------------------------------------


def in_job_file(text: str, folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB + text)
    load_job(folder / "job.yaml")


def in_job_text(text: str, folder: Path) -> None:
    parse_job(JOB + text)


def in_settings(text: str, folder: Path) -> None:
    (folder / "conf").mkdir()
    (folder / "conf" / "base.yaml").write_text(text)
    load_settings(cwd=folder)


def in_a_variable(text: str, folder: Path) -> None:
    flow = "[" * 500 if "nested" in text else "{a: &a [1, 2], " + "b: [" + "*a," * 60_000 + "]}"
    os.environ["CHUNKMAP_DASK__CLUSTER_KWARGS"] = flow
    try:
        load_settings(cwd=folder)
    finally:
        del os.environ["CHUNKMAP_DASK__CLUSTER_KWARGS"]


def in_a_stored_job(text: str, folder: Path) -> None:
    storage = Storage({"s3": MemoryBackend()})
    run = run_of(storage, plan_of(1))
    storage.put(run.ledger.prefix + "job.yaml", (JOB + text).encode())
    run.again(storage).ledger.job()


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "read", [in_job_file, in_job_text, in_settings, in_a_variable, in_a_stored_job]
)
@pytest.mark.parametrize("text", [LAUGHS, "nested: " + "[" * 5000], ids=["aliases", "nested"])
def test_everywhere(read: Callable[[str, Path], None], text: str, tmp_path: Path) -> None:
    with quickly(), pytest.raises(UsageError, match=r":\d+: not YAML|KWARGS:1: not YAML"):
        read(text, tmp_path)


def test_a_file_without_an_end_is_refused() -> None:
    with quickly(), pytest.raises(JobError, match=r"zero:1: larger than 1,048,576 bytes"):
        load_job("/dev/zero")


def test_a_job_that_could_not_be_read_back_is_not_stored() -> None:
    job: Job = job_of(params={"names": ["x" * 100] * 11_000})
    with pytest.raises(JobError, match="larger than 1,048,576 bytes as a file"):
        job.to_yaml()
