"""conf/kubernetes.yaml, as far as it can be checked without a cluster."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.settings import Settings, load_settings
from tests.contracts.source import ROOT

GRACE_SECONDS = 30
"""What Kubernetes gives a pod by default."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("CHUNKMAP_CONF", str(ROOT / "conf"))
    for name in ("DASK_SCHEDULER_ADDRESS", "PREFECT_API_URL", "CHUNKMAP_DASK__SCHEDULER"):
        monkeypatch.delenv(name, raising=False)
    return load_settings("kubernetes", cwd=tmp_path)


def variables(settings: Settings) -> dict[str, Any]:
    return {variable["name"]: variable for variable in settings.dask.cluster_kwargs["env"]}


def test_no_secret_is_in_it(settings: Settings) -> None:
    for name, variable in variables(settings).items():
        if name.startswith("AWS_") and name != "AWS_REGION":
            assert set(variable) == {"name", "valueFrom"}


def test_its_variables_are_settings(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker's pod reads them."""
    monkeypatch.delenv("CHUNKMAP_CONF")
    for name, variable in variables(settings).items():
        if "value" in variable:
            monkeypatch.setenv(name, variable["value"])
    # The operator's own.
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://chunkmap-scheduler.chunkmap.svc:8786")
    there = load_settings(cwd=tmp_path)
    assert there.logs.format == "json"
    assert there.dask.stop_seconds < GRACE_SECONDS
    assert there.dask.scheduler == "tcp://chunkmap-scheduler.chunkmap.svc:8786"
    assert there.prefect.api_url is None


def test_the_workers_command_takes_what_the_operator_adds(
    settings: Settings, tmp_path: Path
) -> None:
    _, *command = settings.dask.cluster_kwargs["worker_command"]
    added = shlex.split("--name w-1 --dashboard --dashboard-address 8788")
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("CHUNKMAP_", "DASK_"))}
    done = subprocess.run(
        [sys.executable, *command, *added],
        cwd=tmp_path,
        env={**bare, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "a worker needs the scheduler's address" in done.stderr


def test_the_cluster_class_takes_the_arguments(settings: Settings) -> None:
    import inspect

    kube = pytest.importorskip("dask_kubernetes.operator")
    known = inspect.signature(kube.KubeCluster.__init__).parameters
    assert set(settings.dask.cluster_kwargs) <= set(known)
    assert settings.dask.cluster_class == "dask_kubernetes.operator:KubeCluster"
