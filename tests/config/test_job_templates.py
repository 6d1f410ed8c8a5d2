"""The base job templates of conf/deploy, checked against Prefect's own."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import jsonschema  # type: ignore[import-untyped]
import prefect
import pytest
from prefect.client.schemas.actions import DeploymentCreate
from prefect.server.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessJobConfiguration

from pipeline.config.deploy_file import environments, read_deployed
from tests.contracts.source import ROOT

TEMPLATES = ROOT / "conf" / "deploy" / "templates"
COLLECTIONS = Path(prefect.__file__).parent / "server" / "api" / "collections_data" / "views"
PREFECTS: dict[str, Any] = {
    kind: worker["default_base_job_configuration"]
    for workers in json.loads((COLLECTIONS / "aggregate-worker-metadata.json").read_text()).values()
    for kind, worker in workers.items()
}
KINDS = ("process", "docker", "kubernetes")


def template_of(kind: str) -> dict[str, Any]:
    template: dict[str, Any] = json.loads((TEMPLATES / f"{kind}.json").read_text("utf-8"))
    return template


def placeholders(value: Any) -> set[str]:
    return set(re.findall(r"\{\{\s*(\w+)\s*\}\}", json.dumps(value)))


def test_each_kind_of_pool_has_one() -> None:
    assert {path.stem for path in TEMPLATES.iterdir()} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_prefect_takes_it(kind: str) -> None:
    template = template_of(kind)
    WorkPoolCreate.model_validate({"name": "p", "type": kind, "base_job_template": template})
    variables = template["variables"]
    jsonschema.Draft202012Validator.check_schema(variables)
    # What is not used has no effect, and a default must be what its schema says.
    assert placeholders(template["job_configuration"]) == set(variables["properties"])
    for name, schema in variables["properties"].items():
        if "default" in schema:
            jsonschema.validate(schema["default"], schema)
        theirs = PREFECTS[kind]["variables"]["properties"].get(name)
        assert theirs is None or theirs.get("type", schema["type"]) == schema["type"], name
    # What Prefect's worker of that kind does not know would have no effect either.
    known = PREFECTS[kind]["job_configuration"].keys()
    assert template["job_configuration"].keys() <= known


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_and_no_address_is_in_it(kind: str) -> None:
    text = (TEMPLATES / f"{kind}.json").read_text("utf-8")
    assert not re.search(r"https?://|\d+\.\d+\.\d+\.\d+", text)
    for name in ("AWS_SECRET_ACCESS_KEY", "PREFECT_API_AUTH_STRING", "password"):
        assert name not in text


def test_a_pod_may_do_little() -> None:
    """As SECURITY.md wants containers: no root, no new rights, nothing to write but /tmp."""
    spec = template_of("kubernetes")["job_configuration"]["job_manifest"]["spec"]["template"][
        "spec"
    ]
    [container] = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    user = re.search(r"useradd --uid (\d+)", (ROOT / "Dockerfile").read_text("utf-8"))
    assert user is not None
    assert spec["securityContext"]["runAsUser"] == int(user[1])
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    # Prefect and the sweep start again what died; Kubernetes would start it behind their backs.
    assert (
        template_of("kubernetes")["job_configuration"]["job_manifest"]["spec"]["backoffLimit"] == 0
    )


def test_the_worker_of_processes_fills_it(tmp_path: Path) -> None:
    values = {"working_dir": str(tmp_path), "env": {"A": "1"}}
    # It asks nothing of a server, and would start one where no address is set.
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        filled: Any = asyncio.run(
            ProcessJobConfiguration.from_template_and_values(template_of("process"), values)
        )
    assert (filled.working_dir, filled.stream_output) == (tmp_path, True)
    assert filled.env["A"] == "1"


@pytest.mark.parametrize("name", environments(ROOT))
def test_job_variables_of_the_environments_fit(name: str) -> None:
    deployed = read_deployed(ROOT, name, {"PWD": "/here"})
    template = deployed.job_template or PREFECTS[deployed.pool.type]
    for deployment in deployed.deployments:
        action = DeploymentCreate.model_construct(
            name="d", flow_id=UUID(int=1), job_variables=deployment.job_variables
        )
        action.check_valid_configuration(template)
        unknown = deployment.job_variables.keys() - template["variables"]["properties"].keys()
        assert not unknown, f"{deployment.name}: nothing uses {unknown}"
