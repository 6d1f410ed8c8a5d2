"""Commands of tests that are forked are as those that are started: see tests/support/forks.py."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.forks import forks, give, program, start

LOOK = """
import os, sys
print(os.getcwd(), sorted(os.environ), sys.argv[1:], __name__, end="")
print(sys.stdin.read(), file=sys.stderr, end="")
sys.left = sys.argv  # Nothing of it is left for the next one.
sys.exit(hasattr(sys, "left") + 2)
"""


def test_a_fork_has_a_folder_variables_streams_and_an_exit_code_of_its_own(tmp_path: Path) -> None:
    said = give("a", "b c", code=LOOK, cwd=tmp_path, variables={"ONE": "1"})
    assert said.stdout == f"{tmp_path} ['ONE'] ['a', 'b c'] __main__"
    assert (said.stderr, said.returncode) == ("", 3)
    next_one = give(code="import sys; sys.exit(hasattr(sys, 'left'))")
    assert next_one.returncode == 0


def test_an_error_is_a_traceback() -> None:
    said = give(code="1 / 0")
    assert said.returncode == 1
    assert "ZeroDivisionError" in said.stderr


def test_one_that_takes_too_long_is_killed_and_the_next_is_not_concerned() -> None:
    with pytest.raises(TimeoutError):
        give(code="import time; time.sleep(600)", seconds=0.1)
    assert give(code="print('next')").stdout == "next\n"


def test_several_run_at_once_and_can_be_killed() -> None:
    with open(os.devnull, "r+b") as nothing:
        streams = [nothing.fileno()] * 3
        sleeper = forks().start("import time; time.sleep(600)", (), "/", {}, *streams)
    assert give(code="print('meanwhile')").stdout == "meanwhile\n"
    assert not sleeper.has_ended
    sleeper.kill()
    assert sleeper.wait(60) == -9
    assert sleeper.has_ended


def test_one_that_has_ended_is_sent_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may have its id by now."""
    with start(code="") as running:
        assert select.select([running._process._status], [], [], 60)[0], "it ends"
        monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
        running.kill()
    assert running.returncode == 0


def test_a_program_forks_for_those_who_start_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    variables, descriptor = program(tmp_path / "look", LOOK, flows=False)
    done = subprocess.run(
        ["bash", "-c", "echo typed | ../look a 'b c'"],
        cwd=tmp_path / "folder",
        env={**variables, "ONE": "1", "PATH": os.environ["PATH"]},
        pass_fds=[descriptor],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(f"{tmp_path}/folder [") and "'ONE'" in done.stdout
    assert done.stdout.endswith("['a', 'b c'] __main__") and "FORKS" not in done.stdout
    assert (done.stderr, done.returncode) == ("typed\n", 3)


def test_one_that_was_started_can_be_interrupted_and_tells_what_it_printed() -> None:
    code = """
import time
try:
    print("waits", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    print("told to stop")
    raise SystemExit(130)
"""
    with start(code=code) as running:
        assert running.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0.05)
        while not os.pread(running._printed[0].fileno(), 5, 0):
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        assert running.communicate(60) == ("waits\ntold to stop\n", "")
    assert (running.poll(), running.returncode) == (130, 130)
