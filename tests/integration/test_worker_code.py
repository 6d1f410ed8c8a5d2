"""A cluster whose workers lack a job's code, packages or permission is refused before a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cluster.client import ClusterClient
from pipeline.cluster.task_runner import task_runner
from pipeline.config.job import Job
from pipeline.config.sections import DaskSettings
from pipeline.config.settings import load_settings
from pipeline.errors import VersionMismatchError
from pipeline.flows.doctor import _code, _transforms
from pipeline.flows.worker_code import check_code

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


@pytest.mark.integration
def test_what_differs_is_named_with_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for folder in (theirs, ours):
        folder.mkdir()
    for name in ("stores", "lab"):
        (ours / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(theirs)
    monkeypatch.setenv("CHUNKMAP_TRANSFORMS__ALLOW", "stores")
    monkeypatch.syspath_prepend(str(install(tmp_path / "old", "1.0")))  # A worker gets this path.
    with task_runner(DaskSettings(workers=1), {}) as runner:
        runner.client.wait_for_workers(1, 60)
        monkeypatch.chdir(ours)  # The run is started elsewhere, with other settings.
        monkeypatch.setenv("CHUNKMAP_TRANSFORMS__ALLOW", "stores,lab")
        monkeypatch.syspath_prepend(str(install(tmp_path / "new", "2.0")))
        here = load_settings()

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
        assert finding.said == (
            "lab: worker 0 does not allow it: its transforms.allow is ['stores']"
        )
        [finding] = _code(cluster, here, job("stores"))
        assert (finding.level, finding.what) == ("error", "job test")

        # The worker finds the run's folder, and code without the package is the same there.
        (ours / "stores.py").write_text(CODE.replace("import geolib\n", ""))
        check_code(runner, job("stores"), here)
        [finding] = _code(cluster, here, job("stores"))
        assert finding.level == "ok"
