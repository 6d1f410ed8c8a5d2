"""The dashboard and the alerts name metrics that exist, and Grafana finds what it shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest
import yaml
from distributed import Client
from prometheus_client.metrics import MetricWrapperBase

from pipeline import metrics
from tests.contracts.source import ROOT
from tests.support.plain_dask import plain_client

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "chunkmap.json").read_text("utf-8"))
ALERTS = yaml.safe_load((ROOT / "deploy" / "prometheus-alerts.yml").read_text("utf-8"))
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PROMETHEUS = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text("utf-8"))
SUFFIXES = {
    "counter": ("_total", "_created"),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
}
OF_PROMETHEUS = {"up"}
"""What Prometheus makes of each scrape."""
LANGUAGE = {
    *("sum", "rate", "increase", "by", "or", "and", "vector", "histogram_quantile"),
    *("le", "direction", "error", "kind", "status", "end", "state", "type", "instance", "job"),
}


def ours() -> dict[str, tuple[str, ...]]:
    """The labels of each series that chunkmap exports, by its name."""
    found: dict[str, tuple[str, ...]] = {}
    for each in vars(metrics).values():
        if isinstance(each, MetricWrapperBase):
            for suffix in SUFFIXES[str(each._type)]:
                labels = each._labelnames + (("le",) if suffix == "_bucket" else ())
                found[str(each._name) + suffix] = labels
    return found


def expressions() -> list[str]:
    shown = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*shown, *(rule["expr"] for rule in RULES)]


def names_in(expression: str) -> set[str]:
    """The metrics of a query: its words, without durations, label values and the language's."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', " ", expression)
    return set(re.findall(r"[a-z_]{2,}[a-z0-9_]*", bare)) - LANGUAGE


@pytest.fixture(scope="module")
def of_dask() -> Iterator[dict[str, set[str]]]:
    """The labels of each series that a scheduler and a worker really serve, by its name."""
    with plain_client(processes=False, protocol="tcp://") as client:
        assert client.submit(sum, (1, 2)).result() == 3
        found: dict[str, set[str]] = {}
        for address in dashboards(client):
            with urlopen(f"{address}/metrics", timeout=20) as answer:
                for line in answer.read().decode().splitlines():
                    series = re.match(r"(\w+)(?:\{(.*)\})? ", line)
                    if series is not None:
                        labels = re.findall(r'(\w+)="', series[2] or "")
                        found.setdefault(series[1], set()).update(labels)
        yield found


def dashboards(client: Client) -> list[str]:
    scheduler = client.scheduler_info()
    ports = [scheduler["services"]["dashboard"]]
    ports += [worker["services"]["dashboard"] for worker in scheduler["workers"].values()]
    return [f"http://127.0.0.1:{port}" for port in ports]


def test_every_metric_exists(of_dask: dict[str, set[str]]) -> None:
    known = ours().keys() | of_dask.keys() | OF_PROMETHEUS
    used = set().union(*map(names_in, expressions()))
    assert used <= known
    assert {name.partition("_")[0] for name in used} == {"chunkmap", "dask", "up"}


def test_what_is_grouped_by_is_a_label(of_dask: dict[str, set[str]]) -> None:
    labels = {**{name: set(of) for name, of in ours().items()}, **of_dask}
    for expression in expressions():
        for grouped, inner in re.findall(r"by \(([^)]*)\) \((?:rate\()?([a-z0-9_]+)", expression):
            wanted = {label.strip() for label in grouped.split(",")} - {"instance"}
            assert wanted <= labels[inner], expression
        for name, label in re.findall(r"(\w+)\{(\w+)[!=]", expression):
            assert label in labels.get(name, {"job"}), expression


def test_expressions_are_whole() -> None:
    for expression in expressions():
        depth = 0
        for letter in expression:
            depth += {"(": 1, ")": -1}.get(letter, 0)
            assert depth >= 0, expression
        assert depth == 0, expression
        # A counter only grows: its value says nothing, its rate does.
        for name in re.findall(r"(\w+_total)(?!\w)", expression):
            assert re.search(rf"(rate|increase)\({name}\[", expression), expression


def test_panels_have_their_places() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_grafana_finds_dashboard_and_prometheus() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    providers = yaml.safe_load((folder / "dashboards" / "chunkmap.yml").read_text("utf-8"))
    [provider] = providers["providers"]
    services = yaml.safe_load((ROOT / "docker-compose.dask.yml").read_text("utf-8"))["services"]
    mounts = services["grafana"]["volumes"]
    where = provider["options"]["path"]
    assert f"./deploy/grafana/chunkmap.json:{where}/chunkmap.json:ro" in mounts
    environment = services["grafana"]["environment"]
    assert environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{where}/chunkmap.json"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false", "its administrator has a known password"
    # And Prometheus its alerts.
    [rules] = PROMETHEUS["rule_files"]
    assert f"./deploy/prometheus-alerts.yml:{rules}:ro" in services["prometheus"]["volumes"]


def test_alerts_say_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    jobs = {job["job_name"] for job in PROMETHEUS["scrape_configs"]}
    for rule in RULES:
        assert rule["annotations"].keys() == {"summary", "next"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(re.findall(r'job="([^"]+)"', rule["expr"])) <= jobs
    # What the operator must hear of: a run that is stuck, failures, and the objective.
    assert {"ChunkmapStuck", "ChunkmapFailureRate", "ChunkmapObjectiveBurns"} <= {
        rule["alert"] for rule in RULES
    }
