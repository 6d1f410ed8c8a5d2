"""The workloads under pytest-benchmark's own timer and options.

    chunkmap up && pytest benchmarks/micro/test_workloads.py --benchmark-autosave

Each subject's process is started before the clock and kept; what is timed is its work, from
asking until it answers. `chunkmap bench run` measures more (cold and warm, memory, requests).
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suite.checking import Checker
from benchmarks.suite.datasets import ensure
from benchmarks.suite.environments import PEERS, REFERENCE, environment_of, is_installed
from benchmarks.suite.expected import expect
from benchmarks.suite.measure import Conditions, remove, spec_of
from benchmarks.suite.serving import Serving
from benchmarks.suite.session import DEFAULT_ROOT, contender
from benchmarks.suite.workloads import WORKLOADS
from pipeline.config.settings import Settings
from pipeline.storage import open_storage

ROUNDS = 3
CASES = [
    (workload.name, subject)
    for workload in WORKLOADS.values()
    if workload.suite == "main" and workload.kind == "map"
    for subject in (REFERENCE, *workload.peers)
]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "subject"), CASES)
def test_workload(benchmark: Any, running: Settings, name: str, subject: str) -> None:
    settings = running
    peer = PEERS[subject]
    if not is_installed(peer, settings.state_dir):
        pytest.skip(f"{peer.title} is not installed: chunkmap bench run installs it")
    workload, storage = WORKLOADS[name], open_storage(settings)
    card = ensure(storage, DEFAULT_ROOT, workload.dataset, "s")
    conditions = Conditions(DEFAULT_ROOT, f"pytest-{uuid.uuid4().hex[:8]}", "s")
    output = conditions.output(name, subject)
    spec = spec_of(conditions, workload, card, output, iterations=1, workers=0, tasks=0)
    variables = contender(subject, settings, print).variables
    folder = Path.cwd() if peer.lock is None else None
    environment = environment_of(peer, settings.state_dir)
    benchmark.group = name
    told: list[dict[str, Any]] = []
    try:
        with Serving(environment, spec, variables, folder) as serving:
            benchmark.pedantic(lambda: told.append(serving.work()), rounds=ROUNDS, warmup_rounds=1)
        expected = expect(storage, DEFAULT_ROOT, workload, card)
        assert Checker(storage, expected).problem(told) == ""
    finally:
        remove(storage, output)
