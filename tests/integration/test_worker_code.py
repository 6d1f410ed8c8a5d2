"""A cluster that is started for a run: who may connect, and what its workers lack of a job.

A cluster whose workers lack a job's code, packages or permission is refused before a run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.certificates import make
from pipeline.cluster.client import ClusterClient
from pipeline.cluster.reachability import connect_scheduler
from pipeline.cluster.task_runner import task_runner
from pipeline.cluster.tls import security_of
from pipeline.config.job import Job
from pipeline.config.sections import DaskSettings, TlsSettings
from pipeline.config.settings import load_settings
from pipeline.errors import EngineUnavailableError, VersionMismatchError
from pipeline.flows.doctor import _code, _transforms
from pipeline.flows.worker_code import check_code

pytestmark = pytest.mark.integration

CODE = "import geolib\n\ndef same(frame):\n    return frame\n"


def install(folder: Path, version: str) -> Path:
    """Put a package of some version into a folder, as pip does."""
    (folder / f"geolib-{version}.dist-info").mkdir(parents=True)
    meta = f"Metadata-Version: 2.1\nName: geolib\nVersion: {version}\n"
    (folder / f"geolib-{version}.dist-info" / "METADATA").write_text(meta)
    (folder / "geolib.py").write_text("")
    return folder


def job(module: str) -> Job:
    return Job.model_validate(
        {
            "name": "test",
            "input": {"uri": "s3://demo/in/"},
            "transform": f"{module}:same",
            "output": {"uri": "s3://demo/out/"},
        }
    )


@dataclass(frozen=True)
class Own:
    """A cluster that was started for a run, in a folder with other code and settings."""

    runner: Any
    ours: Path
    """The folder of the run, which the worker does not know."""


def own_variables() -> dict[str, str]:
    """This process's variables, but for those that Dask itself sets."""
    names = ("AWS_", "CHUNKMAP_", "POLARS_", "PREFECT_")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    folder = tmp_path_factory.mktemp("own")
    theirs, ours = folder / "theirs", folder / "ours"
    for each in (theirs, ours):
        each.mkdir()
    for name in ("stores", "lab"):
        (ours / f"{name}.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(theirs)
        patch.setenv("CHUNKMAP_TRANSFORMS__ALLOW", "stores")
        patch.syspath_prepend(str(install(folder / "old", "1.0")))  # A worker gets this path.
        before = own_variables()
        with task_runner(DaskSettings(workers=1), {"AWS_REGION": "for-workers"}) as runner:
            runner.client.wait_for_workers(1, 60)
            patch.chdir(ours)  # The run is started elsewhere, with other settings.
            patch.setenv("CHUNKMAP_TRANSFORMS__ALLOW", "stores,lab")
            patch.syspath_prepend(str(install(folder / "new", "2.0")))
            yield Own(runner, ours)
        patch.setenv("CHUNKMAP_TRANSFORMS__ALLOW", "stores")
        assert own_variables() == before, "variables of the workers, secrets among them, stay"


def test_it_asks_for_a_certificate_that_only_it_has(own: Own, tmp_path: Path) -> None:
    address = own.runner.client.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    assert own.runner.client.submit(sum, (40, 2)).result() == 42
    with pytest.raises(EngineUnavailableError):
        connect_scheduler(address.replace("tls://", "tcp://"), 5).close()
    make(tmp_path)
    other = TlsSettings(
        ca=tmp_path / "ca.pem", cert=tmp_path / "worker.pem", key=tmp_path / "worker-key.pem"
    )
    with pytest.raises(EngineUnavailableError):
        connect_scheduler(address, 5, security_of(other)).close()


def test_what_differs_is_named_with_the_worker(own: Own) -> None:
    runner, here = own.runner, load_settings()

    with pytest.raises(VersionMismatchError) as caught:
        check_code(runner, job("stores"), here)
    assert "package geolib is 2.0 here, 1.0 there, on worker 0" in caught.value.message
    with pytest.raises(VersionMismatchError) as caught:
        check_code(runner, job("lab"), here)
    assert "transforms.allow does not allow lab:same: it is ['stores']" in caught.value.message
    assert "CHUNKMAP_TRANSFORMS__ALLOW" in str(caught.value.hint)

    cluster = ClusterClient(runner.client)
    [finding] = _transforms(cluster, here)
    assert finding.level == "error"
    assert finding.said == "lab: worker 0 does not allow it: its transforms.allow is ['stores']"
    [finding] = _code(cluster, here, job("stores"))
    assert (finding.level, finding.what) == ("error", "job test")

    # The worker finds the run's folder, and code without the package is the same there.
    (own.ours / "stores.py").write_text(CODE.replace("import geolib\n", ""))
    check_code(runner, job("stores"), here)
    [finding] = _code(cluster, here, job("stores"))
    assert finding.level == "ok"
