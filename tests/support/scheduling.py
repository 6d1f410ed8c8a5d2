"""Who runs what, in which order, when several processes run the tests (`pytest -n`)."""

from __future__ import annotations

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

CLUSTER = "tests/faults with a cluster"
_PAGE = "tests/docs/test_commands.py::test_the_page_does_what_it_says"
WITH_CLUSTER = {
    f"tests/faults/test_{name}.py"
    for name in (
        "driver_dies",
        "groups_die",
        "merges_die",
        "services_die",
        "stopped_workers",
        "transforms_misbehave",
        "workers_die",
        "workers_leave",
    )
}
ON_STACKS = (
    CLUSTER,
    f"{_PAGE}[README.md]",
    f"{_PAGE}[tutorial.md]",
    f"{_PAGE}[runs.md]",
    "tests/integration/test_run.py",
    "tests/integration/test_cluster.py",
    "tests/faults/test_two_at_once.py",
    "tests/integration/test_pipelines.py",
    "tests/integration/test_deploy.py",
    "tests/integration/test_api.py",
    "tests/integration/test_backfill.py",
    "tests/integration/test_cli.py",
    "tests/integration/test_prefect.py",
    "tests/integration/test_observability.py",
    "tests/integration/test_strangers.py",
    "tests/integration/test_bad_input.py",
    "tests/faults/test_replies.py",
    "tests/faults/test_inputs_change.py",
    "tests/examples/test_reductions.py",
    "tests/integration/test_stack.py",
    "tests/integration/test_task_runs.py",
    "tests/integration/test_worker_memory.py",
    "tests/integration/test_limits.py",
    "tests/integration/test_hostile_text.py",
    "tests/integration/test_dask_client.py",
    "tests/benchmarks/test_expected.py",
)
"""The longest first, so that the processes end at about the same time."""
_SHORT = ("tests/contracts/", "tests/examples/")


def scope_of(nodeid: str) -> str:
    """What one process runs as a whole: a module, a page, or all that share one cluster."""
    if nodeid.startswith(_PAGE):
        return nodeid
    module = nodeid.partition("::")[0]
    return CLUSTER if module in WITH_CLUSTER else nodeid.rsplit("::", 1)[0]


def rank(nodeid: str) -> tuple[int, int]:
    """By which tests are sorted: what needs no stack, then the stacks, then many short ones.

    A stack that runs, even idle, takes time from all others until its process of tests ends. The
    short ones at the end fill the time that one process has left over.
    """
    scope = scope_of(nodeid)
    if scope in ON_STACKS:
        return 1, ON_STACKS.index(scope)
    return (2 if nodeid.startswith(_SHORT) else 0), 0


class ByCost(LoadScopeScheduling):  # type: ignore[misc]
    """`--dist loadscope`, with these scopes, in the order of the collected tests."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling | None:
    """What xdist is to use, if it was asked to keep modules together."""
    if config.getoption("dist") != "loadscope":
        return None
    config.option.loadscopereorder = False  # It would begin with the modules of many tests.
    return ByCost(config, log)
