"""Clusters on this machine under TLS: one for a run, and the embedded stack's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cluster.certificates import make
from pipeline.cluster.local import credentials, services
from pipeline.cluster.reachability import connect_scheduler
from pipeline.cluster.task_runner import task_runner
from pipeline.cluster.versions import check_versions
from pipeline.config.sections import DaskSettings
from pipeline.errors import EngineUnavailableError, SettingsError


def settings(folder: Path) -> DaskSettings:
    tls = {"ca": folder / "ca.pem", "cert": folder / "worker.pem", "key": folder / "worker-key.pem"}
    return DaskSettings.model_validate({"workers": 1, "tls": tls})


@pytest.mark.long
@pytest.mark.integration
def test_a_runs_own_cluster(tmp_path: Path) -> None:
    make(tmp_path)
    with task_runner(settings(tmp_path), {}) as runner:
        address = runner.client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert runner.client.submit(sum, (40, 2)).result() == 42
        check_versions(runner)
        with pytest.raises(EngineUnavailableError, match="wants a certificate"):
            connect_scheduler(address, 5).close()


def test_the_stacks_cluster_has_certificates_of_its_own(tmp_path: Path) -> None:
    launch = services.dask(tmp_path, (1111, 2222), settings(tmp_path / "users"), 3333)
    assert launch.address == "tls://127.0.0.1:1111"
    request = json.loads(next(word for word in launch.command if word.startswith("{")))
    assert request["tls"] == credentials.tls_settings(tmp_path, "worker")
    assert all(Path(path).is_relative_to(tmp_path / "tls") for path in request["tls"].values())
    assert all(Path(path).exists() for path in request["tls"].values())


def test_the_stacks_workers_may_import_what_its_starter_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other settings of the shell do not reach them: they would lead to another stack."""
    monkeypatch.setenv("CHUNKMAP_TRANSFORMS__ALLOW", '["shop"]')
    monkeypatch.setenv("CHUNKMAP_PREFECT__API_URL", "http://127.0.0.1:1/api")
    launch = services.dask(tmp_path, (1111, 2222), settings(tmp_path / "users"), 3333)
    assert launch.environment["CHUNKMAP_TRANSFORMS__ALLOW"] == '["shop"]'
    assert "CHUNKMAP_PREFECT__API_URL" not in launch.environment


def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"dask\.tls\.ca: .*ca\.pem: No such file"):
        task_runner(settings(tmp_path), {})
