"""How workers share a machine or a container, and that Dask is configured that way."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.cluster.resources import MALLOC, NANNY_BYTES, Profile, for_container, for_machine
from pipeline.config.settings import Settings

GIB = 1 << 30


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "expected"),
    [
        (8, None, None, (8, Profile(1, 1, 2 * GIB))),
        (8, None, 2, (4, Profile(2, 2, 4 * GIB))),
        (8, 2, None, (2, Profile(1, 4, 8 * GIB))),
        (2, 8, None, (8, Profile(1, 1, 2 * GIB))),
        (1, None, 4, (1, Profile(4, 1, 16 * GIB))),
    ],
)
def test_workers_share_a_machine(
    cores: int, workers: int | None, threads: int | None, expected: tuple[int, Profile]
) -> None:
    assert for_machine(cores, workers, threads, None, 16 * GIB) == expected


def test_a_worker_leaves_its_nanny_a_part_of_the_container() -> None:
    assert for_container(4, None, None, 8 * GIB).memory == 8 * GIB - NANNY_BYTES
    assert for_container(1, None, None, GIB // 2).memory == GIB // 2 - GIB // 8
    assert for_container(4, None, 3 * GIB, 8 * GIB).memory == 3 * GIB


def test_polars_has_the_whole_containers_cores_whatever_the_threads() -> None:
    for threads in (None, 1, 2):
        assert for_container(4, threads, None, GIB).polars_threads == 4


def test_given_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    no_server = {"PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}
    for name in ("POLARS_MAX_THREADS", *MALLOC, *no_server):
        monkeypatch.delenv(name, raising=False)
    assert Profile(1, 3, 0).environment() == {"POLARS_MAX_THREADS": "3", **MALLOC, **no_server}
    monkeypatch.setenv("POLARS_MAX_THREADS", "7")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    told = Profile(1, 3, 0).environment()
    assert told["POLARS_MAX_THREADS"] == "7"
    assert told["MALLOC_TRIM_THRESHOLD_"] == "65536"


def configured(**variables: str) -> dict[str, object]:
    """What Dask's configuration is in a fresh process after ours."""
    code = (
        "import json, dask; from pipeline.cluster.resources import configure; configure();"
        "get = lambda name: dask.config.get('distributed.' + name);"
        "print(json.dumps({n: get(n) for n in ("
        "'scheduler.allowed-failures', 'scheduler.worker-ttl', 'worker.memory.pause',"
        "'worker.memory.spill', 'worker.memory.terminate', 'worker.profile.enabled',"
        "'scheduler.no-workers-timeout')}))"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("DASK_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_dask_has_our_defaults_and_its_own_variables_win() -> None:
    ours = configured()
    assert ours["scheduler.allowed-failures"] == 1
    assert ours["worker.memory.pause"] is False
    assert ours["worker.memory.spill"] is False
    assert ours["worker.memory.terminate"] == 0.95
    assert ours["worker.profile.enabled"] is False
    assert ours["scheduler.no-workers-timeout"] == "10 minutes"
    theirs = configured(DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="12s")
    assert theirs["scheduler.worker-ttl"] == "12s"
    assert theirs["scheduler.allowed-failures"] == 1


@pytest.mark.parametrize(
    ("dask", "problem"),
    [
        ({"tls": {"ca": "a.pem"}}, "cert, key is missing"),
        (
            {"scheduler": "tcp://a:1", "tls": {"ca": "a", "cert": "b", "key": "c"}},
            "must begin with tls://",
        ),
        ({"scheduler": "tcp://a:1", "adapt": {"maximum": 3}}, "names a running one"),
    ],
)
def test_what_does_not_go_together_is_refused(dask: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Settings.model_validate({"dask": dask})
