"""What chunkmap's own script measures of its workers, and how it says what of a dataset it does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks.peers.chunkmap_run import WORK, State, peak_bytes, worker_pids, workers_cpu
from benchmarks.suite.workloads import WORKLOADS
from pipeline.config.settings import Settings

Answer = tuple[str, int] | Exception


class Cluster:
    """A cluster whose workers answer with a machine and a process id."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = answers

    def ask(self, question: Any) -> dict[str, Answer]:
        machine, _ = question()
        return {
            f"tls://{number}": answer
            if isinstance(answer, Exception)
            else (answer[0].replace("here", machine), answer[1])
            for number, answer in enumerate(self.answers)
        }


@pytest.mark.parametrize(
    ("answers", "pids"),
    [
        ((("here", 11), ("here", 12)), [11, 12]),
        ((("here", 11), ("elsewhere", 12)), []),
        ((("here", 11), TimeoutError("busy")), []),
        ((), []),
    ],
    ids=["of this machine", "one elsewhere", "one silent", "none"],
)
def test_workers_count_only_if_all_are_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[Answer, ...], pids: list[int]
) -> None:
    @contextmanager
    def cluster_of(settings: object) -> Iterator[Cluster]:
        yield Cluster(*answers)

    monkeypatch.setattr("pipeline.cluster.client.cluster_of", cluster_of)
    assert worker_pids(Settings()) == pids


def test_the_workers_processor_time_grows_and_ends_with_them() -> None:
    burn = "print(sum(range(10_000_000)), flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", burn], **pipes) as worker:  # type: ignore[call-overload]
        state = State(Settings(), workers=[worker.pid, os.getpid()])
        worker.stdout.readline()
        alone = workers_cpu(State(Settings(), workers=[worker.pid]))
        both = workers_cpu(state)
        assert alone is not None and both is not None
        assert 0.05 < alone < both
        worker.communicate(b"\n")
    assert workers_cpu(state) is None, "a time without one of them would be too short"
    assert workers_cpu(State(Settings())) is None


def test_the_driver_s_peak_is_in_bytes() -> None:
    assert 20e6 < peak_bytes() < 20e9


def test_each_workload_that_is_more_than_a_run_has_its_own_code() -> None:
    assert set(WORK) - {"map"} == {
        workload.name for workload in WORKLOADS.values() if workload.kind not in ("map", "wait")
    }
