"""Flame graphs, by py-spy where it is installed and by a program that stands in for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.peers.protocol import Spec
from benchmarks.report.write import write_report
from benchmarks.suite.environments import Environment
from benchmarks.suite.profiling import PROGRAM, find_program, profile
from benchmarks.suite.session import PROFILES, Request, Session, report_folder
from benchmarks.suite.settings import TRANSFORMS
from benchmarks.suite.subjects import ProcessSubject
from pipeline.config.sections import TransformSettings
from pipeline.config.settings import Settings
from pipeline.errors import UsageError
from tests.support.benchmark_records import full_record

ROOT = Path(__file__).parents[2]
SPEC = Spec("made-up", "s3://in/", "s3://out/", "same")
WORK = """
from benchmarks.peers.protocol import main

def burn_the_time(state, spec, output):
    return sum(number % 7 for number in range(1_000_000))

main(lambda spec: None, {"map": burn_the_time})
"""
# Prints and writes as py-spy does: a line when it has attached, a file when it is interrupted.
STAND_IN = """#!{python}
import signal, sys
pid, path = sys.argv[sys.argv.index("--pid") + 1], sys.argv[sys.argv.index("--output") + 1]
if pid == "1":
    sys.exit("Error: Permission Denied")
signal.signal(signal.SIGINT, lambda *_: None)
print("py-spy> Sampling process 100 times a second. Press Control-C to exit.", flush=True)
signal.pause()
open(path, "w").write(f"<svg>{{' '.join(sys.argv[1:])}}</svg>")
"""


@pytest.fixture
def subject(tmp_path: Path) -> ProcessSubject:
    script = tmp_path / "script.py"
    script.write_text(WORK, encoding="utf-8")
    environment = Environment((sys.executable, str(script)), {"PYTHONPATH": str(ROOT)})
    return ProcessSubject("made-up", environment)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / PROGRAM
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o700)
    monkeypatch.setattr("benchmarks.suite.profiling.find_program", lambda: str(program))
    return program


@pytest.fixture
def service() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.usefixtures("stand_in")
def test_driver_and_services_are_recorded_while_they_work(
    subject: ProcessSubject, service: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.suite.profiling.MIN_SECONDS", 0.5)
    said: list[str] = []
    services = {"workers": service, "denied": 1}
    made = profile(subject, SPEC, {}, services=services, folder=tmp_path, echo=said.append)
    assert [path.name for path in made] == ["made-up-driver.svg", "made-up-workers.svg"]
    driver, workers = (path.read_text() for path in made)
    assert "--subprocesses" in workers and "--subprocesses" not in driver
    assert f"--pid {service}" in workers
    assert said == ["made-up: no profile of denied: Error: Permission Denied"]


@pytest.mark.usefixtures("stand_in")
def test_work_that_fails_ends_the_recording(subject: ProcessSubject, tmp_path: Path) -> None:
    script = Path(subject.environment.command[1])
    script.write_text(WORK.replace("return sum", "raise MemoryError('full')\n    return sum"))
    with pytest.raises(RuntimeError):
        profile(subject, SPEC, {}, services={}, folder=tmp_path)


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason="py-spy is not installed")
def test_a_real_flame_graph_names_what_works_and_not_what_waits(
    subject: ProcessSubject, tmp_path: Path
) -> None:
    script = Path(subject.environment.command[1])
    wait = "import queue, threading\n\ndef wait_for_it():\n    queue.SimpleQueue().get()\n"
    start = "threading.Thread(target=wait_for_it, daemon=True).start()\n"
    script.write_text(wait + start + WORK)
    (made,) = profile(subject, SPEC, {}, services={}, folder=tmp_path)
    text = made.read_text("utf-8")
    assert "burn_the_time" in text
    assert "wait_for_it" not in text, "a thread that waits does nothing"


def test_a_session_without_py_spy_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UsageError, match="py-spy") as caught:
        find_program()
    assert "pip install py-spy" in str(caught.value.hint)
    settings = Settings(state_dir=tmp_path, transforms=TransformSettings(allow=(TRANSFORMS,)))
    with pytest.raises(UsageError, match="py-spy"):
        Session(settings, Request(profile=True))
    assert list(tmp_path.iterdir()) == []


def test_the_report_links_the_flame_graphs_and_keeps_them_in_s3(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state")
    folder = report_folder(settings, full_record().id, PROFILES)
    for name in ("row-map-driver", "row-map-workers", "few-rows-driver"):
        (folder / f"{name}.svg").write_text("<svg/>")
    written = write_report(full_record(), settings, (tmp_path / "root").as_uri())
    page = written.html.read_text("utf-8")
    assert 'href="profiles/row-map-workers.svg"' in page
    there = tmp_path / "root" / "reports" / full_record().id / PROFILES
    assert len(list(there.iterdir())) == 3
    (written.html.parent / PROFILES).rename(tmp_path / "away")
    without = write_report(full_record(), settings, (tmp_path / "other").as_uri())
    assert "Profiles" not in without.html.read_text("utf-8")
