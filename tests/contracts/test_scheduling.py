"""Tests that share servers are scheduled together, and late: see tests/support/scheduling.py."""

from __future__ import annotations

import re
from collections import defaultdict

from tests.contracts.source import ROOT
from tests.support.scheduling import ON_STACKS, WITH_CLUSTER


def _with_parameter(parameter: str, folder: str) -> set[str]:
    """The test modules in a folder in which a function has this parameter."""
    files = (ROOT / "tests" / folder).glob("test_*.py")
    return {
        path.relative_to(ROOT).as_posix() for path in files if parameter in path.read_text("utf-8")
    }


def test_all_that_ask_for_the_cluster_of_the_faults_run_in_one_process() -> None:
    """Another process would start a Prefect server, a scheduler and two workers of its own."""
    assert _with_parameter("cluster: Cluster", "faults") == WITH_CLUSTER


def test_all_that_ask_for_the_shared_world_run_late() -> None:
    """The first of them starts its stack, which then runs, idle or not, to the end of all tests."""
    asking = _with_parameter("world: World", "integration")
    assert asking
    assert sorted(asking - set(ON_STACKS)) == []


def test_every_module_with_a_place_in_the_order_is_there() -> None:
    named = {scope for scope in ON_STACKS if scope.endswith(".py")} | WITH_CLUSTER
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


NAMED = re.compile(
    r'\bjob\(\s*(?:(?:guarded\.)?world, )?"([\w-]+)"'  # of `World.job` and of helpers like it
    r'|world\.root / "([\w-]+)\.yaml"\)\.write_text'
)


def test_each_name_in_the_shared_world_is_one_modules() -> None:
    """Another module's job of that name would have its file, its output and its flow runs."""
    users: defaultdict[str, set[str]] = defaultdict(set)
    for module in _with_parameter("world: World", "integration"):
        for job, file in NAMED.findall((ROOT / module).read_text("utf-8")):
            users[job or file].add(module)
    assert len(users) > 40
    assert {name: modules for name, modules in users.items() if len(modules) > 1} == {}
