"""Imports go down only, and each foreign system has one door."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts.floors import UNORDERED, broken_rules, room_of
from tests.contracts.source import (
    PACKAGES,
    ROOT,
    imports_of,
    modules,
    python_files,
)


@pytest.mark.parametrize(
    "path", python_files(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_go_down_and_through_the_doors(path: Path) -> None:
    problems = [
        f"line {line}: {problem}"
        for module, target, line in imports_of(path)
        for problem in broken_rules(module, target)
    ]
    assert not problems, "\n".join(problems)


def test_every_module_stands_on_a_floor() -> None:
    unknown = sorted(name for name in modules() - UNORDERED if room_of(name) is None)
    assert not unknown, f"give these a floor in tests/contracts/floors.py: {unknown}"


def test_importing_the_package_imports_no_engine() -> None:
    """`chunkmap --help` and every submodule pay for `import pipeline`: it must stay free."""
    heavy = {"dask", "distributed", "polars", "prefect", "pyarrow"}
    shown = subprocess.run(
        [sys.executable, "-c", f"import pipeline, sys; print(*{heavy} & sys.modules.keys())"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert shown.split() == []


@pytest.mark.parametrize(
    ("module", "target", "fragment"),
    [
        ("partitioning.planner", "pipeline.storage", "knows only Parquet"),
        ("partitioning.footers", "s3fs", "only pipeline.storage may"),
        ("partitioning.model", "partitioning.planner", "imports go down only"),
        ("partitioning.model", "partitioning", "its own package"),
        ("pipeline.runs.ledger.ledger", "distributed.client", "only pipeline.cluster may"),
        ("pipeline.cli", "prefect.states", "only pipeline.flows may"),
        ("pipeline.table.publish", "obstore.store", "only pipeline.storage may"),
        ("pipeline.storage.s3_objects", "pipeline.runs.ledger.ledger", "imports go down only"),
    ],
)
def test_the_rules_catch_what_they_forbid(module: str, target: str, fragment: str) -> None:
    assert any(fragment in problem for problem in broken_rules(module, target))


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("pipeline.storage.s3_objects", "obstore.store"),
        ("pipeline.storage.s3_objects", "pipeline.storage.backend"),
        ("partitioning.fsspec_reader", "fsspec.asyn"),
        ("pipeline.cluster", "prefect_dask"),
        ("pipeline.flows.mapping", "pipeline.table.publish"),
        ("pipeline.runs.ledger.ledger", "partitioning.model"),
    ],
)
def test_the_rules_allow_what_is_meant(module: str, target: str) -> None:
    assert broken_rules(module, target) == []
