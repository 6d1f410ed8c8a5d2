"""conf/kubernetes.yaml against dask-kubernetes itself, without a cluster."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask_kubernetes.operator
import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from dask_kubernetes.operator import make_cluster_spec

from pipeline.config.settings import Settings, load_settings
from tests.contracts.source import ROOT

CHART = Path(dask_kubernetes.operator.__file__).parent / "deployment/helm/dask-kubernetes-operator"
"""What installs the operator in a cluster."""
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


@pytest.fixture
def cluster(settings: Settings) -> dict[str, Any]:
    """The resource that dask-kubernetes makes of the settings, for its operator."""
    known = inspect.signature(make_cluster_spec).parameters
    kwargs = settings.dask.cluster_kwargs
    spec: dict[str, Any] = make_cluster_spec(**{k: v for k, v in kwargs.items() if k in known})
    return spec


def test_the_workers_command_takes_what_the_operator_adds(
    cluster: dict[str, Any], tmp_path: Path
) -> None:
    [container] = cluster["spec"]["worker"]["spec"]["containers"]
    python, *command = container["args"]
    assert (python, command[0]) == ("python", "-P")
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("CHUNKMAP_", "DASK_"))}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={**bare, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "a worker needs the scheduler's address" in done.stderr


def test_the_operators_definition_takes_the_cluster(
    settings: Settings, cluster: dict[str, Any]
) -> None:
    """As the API of Kubernetes checks it: against the definition that the operator installs."""
    text = (CHART / "crds" / "daskcluster.yaml").read_text("utf-8")
    [version] = yaml.safe_load(text)["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    jsonschema.validate(cluster, schema)
    assert cluster["metadata"]["name"] == settings.dask.cluster_kwargs["name"]
    worker = cluster["spec"]["worker"]
    assert worker["replicas"] == settings.dask.cluster_kwargs["n_workers"]
    known = schema["properties"]["spec"]["properties"]["worker"]["properties"]["spec"]
    fields = known["properties"]["containers"]["items"]["properties"]
    [container] = worker["spec"]["containers"]
    assert container.keys() <= fields.keys()
    for variable in container["env"]:
        assert variable.keys() <= fields["env"]["items"]["properties"].keys()
    # And it is a check.
    broken = {**cluster, "spec": {**cluster["spec"], "worker": {"replicas": "two"}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_the_cluster_class_takes_the_arguments(settings: Settings) -> None:
    known = inspect.signature(dask_kubernetes.operator.KubeCluster.__init__).parameters
    assert set(settings.dask.cluster_kwargs) <= set(known)
    assert settings.dask.cluster_class == "dask_kubernetes.operator:KubeCluster"
    # `chunkmap cluster scale` finds it by its name.
    found = inspect.signature(dask_kubernetes.operator.KubeCluster.from_name).parameters
    assert "name" in found and any(p.kind is p.VAR_KEYWORD for p in found.values())
