"""Subjects as processes: what they print, how they end, what they use."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.peers.protocol import Spec
from benchmarks.suite.environments import Environment
from benchmarks.suite.serving import Serving
from benchmarks.suite.subjects import ProcessSubject

ROOT = Path(__file__).parents[2]
SPEC = Spec("made-up", "s3://in/", "s3://out/", "same", iterations=2)
GOOD = """
from benchmarks.peers.protocol import main

def work(state, spec, output):
    print("noise on stdout")
    assert state == "ready"
    return 7

main(lambda spec: "ready", {"map": work}, packages=("psutil",))
"""


def subject(tmp_path: Path, code: str, timeout: float = 60.0) -> ProcessSubject:
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    root = str(Path(__file__).parents[2])
    environment = Environment((sys.executable, str(script)), {"PYTHONPATH": root})
    return ProcessSubject("made-up", environment, timeout=timeout)


def test_a_good_script(tmp_path: Path) -> None:
    answer = subject(tmp_path, GOOD).run(SPEC, {})
    assert answer.error == ""
    assert [iteration["rows"] for iteration in answer.iterations] == [7, 7]
    assert [iteration["output"] for iteration in answer.iterations] == [
        "s3://out/0/",
        "s3://out/1/",
    ]
    assert all(iteration["work_seconds"] >= 0 for iteration in answer.iterations)
    assert answer.startup_seconds is not None and answer.startup_seconds > 0
    assert answer.versions["psutil"] == psutil.__version__


def test_the_work_s_own_processor_time_is_told(tmp_path: Path) -> None:
    """Of the work, not of start-up; and not where the work times but a part of itself."""
    burn = "sum(range(20_000_000))"
    code = GOOD.replace('("psutil",)', '("psutil",), cpu=own_cpu').replace(
        "main\n", "main, own_cpu\n"
    )
    code = code.replace('lambda spec: "ready"', f'lambda spec: {burn} and "ready"')
    idle = subject(tmp_path, code).run(SPEC, {}).iterations[0]
    busy = subject(tmp_path, code.replace("return 7", f"return {burn}")).run(SPEC, {}).iterations[0]
    assert idle["cpu_seconds"] < 0.1 < busy["cpu_seconds"] <= busy["work_seconds"] * 1.5
    part = code.replace("return 7", 'return {"work_seconds": 1.0, "cpu_seconds": None}')
    assert subject(tmp_path, part).run(SPEC, {}).iterations[0]["cpu_seconds"] is None
    assert "cpu_seconds" not in subject(tmp_path, GOOD).run(SPEC, {}).iterations[0]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit(3)", "ended with code 3"),
        ("print('nothing of use')", "ended with code 0 and no result"),
        ("import a_package_that_is_not_there", "No module named"),
        (GOOD.replace("return 7", "raise MemoryError('too much')"), "MemoryError: too much"),
        (GOOD.replace('"ready", {', 'open("/not/there"), {'), "FileNotFoundError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended with code -9"),
    ],
    ids=["exit", "silent", "import", "work", "start", "killed"],
)
def test_a_bad_script_is_an_answer_too(tmp_path: Path, code: str, words: str) -> None:
    assert words in subject(tmp_path, code).run(SPEC, {}).error


def test_a_script_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(note)!r}).write_text(str(child.pid))
time.sleep(600)
"""
    answer = subject(tmp_path, code, timeout=1).run(SPEC, {})
    assert answer.error == "it was not done after 2 s"
    child = int(note.read_text())
    with pytest.raises((psutil.NoSuchProcess, psutil.TimeoutExpired)):
        # A zombie until its new parent reaps it.
        assert psutil.Process(child).status() == psutil.STATUS_ZOMBIE
        psutil.Process(child).wait(0)


HARNESS = """
import sys
from benchmarks.suite.environments import Environment
from benchmarks.peers.protocol import Spec
from benchmarks.suite.subjects import ProcessSubject, stopped_by_sigterm

with stopped_by_sigterm():
    environment = Environment((sys.executable, sys.argv[1]), {})
    print("started", flush=True)
    ProcessSubject("made-up", environment).run(Spec("x", "s3://in/", "s3://out/", "same"), {})
"""


def test_a_harness_that_is_told_to_stop_stops_its_subject(tmp_path: Path) -> None:
    note, script = tmp_path / "pids", tmp_path / "hanging.py"
    script.write_text(
        "import os, pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"partial = pathlib.Path({str(note)!r} + '.partial')\n"
        "partial.write_text(f'{os.getpid()} {child.pid}')\n"
        f"partial.rename({str(note)!r})\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", HARNESS, str(script)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as harness:
        deadline = time.monotonic() + 60
        while not note.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        started = [psutil.Process(int(pid)) for pid in note.read_text().split()]
        harness.send_signal(signal.SIGTERM)
        assert harness.wait(30) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(started, timeout=10)
    # A zombie waits for its new parent to reap it.
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_memory_and_cpu_of_the_whole_tree_are_seen(tmp_path: Path) -> None:
    busy = (
        "import time; held = bytearray(150_000_000); end = time.process_time() + 0.5\n"
        "while time.process_time() < end: pass\n"
    )
    code = GOOD.replace(
        "return 7", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    )
    answer = subject(tmp_path, code.replace("iterations", "")).run(SPEC, {})
    assert answer.error == ""
    assert 150e6 < answer.peak_bytes < 600e6
    assert answer.cpu_seconds > 0.6, "two iterations of half a second each"


def test_serving_does_the_work_on_demand(tmp_path: Path) -> None:
    one = subject(tmp_path, GOOD)
    with Serving(one.environment, SPEC, {}) as serving:
        assert [serving.work()["output"] for _ in range(3)] == [
            "s3://out/0/",
            "s3://out/1/",
            "s3://out/2/",
        ]


def test_serving_says_when_it_cannot(tmp_path: Path) -> None:
    broken = subject(tmp_path, GOOD.replace("return 7", "raise MemoryError('too much')"))
    with Serving(broken.environment, SPEC, {}) as serving, pytest.raises(RuntimeError):
        serving.work()


def test_start_up_is_apart_from_work(tmp_path: Path) -> None:
    code = GOOD.replace('lambda spec: "ready"', "slow").replace(
        "main(slow",
        "import time\ndef slow(spec):\n    time.sleep(0.5)\n    return 'ready'\n\nmain(slow",
    )
    clock = time.perf_counter()
    answer = subject(tmp_path, code).run(SPEC, {})
    assert answer.startup_seconds is not None
    assert 0.5 <= answer.startup_seconds <= time.perf_counter() - clock
    assert max(iteration["work_seconds"] for iteration in answer.iterations) < 0.4
