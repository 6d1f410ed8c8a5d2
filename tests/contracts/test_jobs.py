"""The jobs in conf/jobs parse, and their transforms take their parameters."""

import importlib
import inspect
from pathlib import Path

import pytest

from pipeline.config.job import load_job
from tests.contracts.source import ROOT

JOBS = sorted((ROOT / "conf" / "jobs").glob("*.y*ml"))


def test_there_are_jobs() -> None:
    assert JOBS


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_the_job_parses_and_its_transform_takes_its_parameters(path: Path) -> None:
    job = load_job(path)
    module, _, function = job.transform.partition(":")
    transform = getattr(importlib.import_module(module), function)
    inspect.signature(transform).bind("lazy frame", **job.params)
