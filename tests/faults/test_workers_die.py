"""kill -9 of workers at each step of a chunk; stopped workers; workers that are short of disk."""

from __future__ import annotations

import io

import polars as pl
import pytest

from pipeline.cluster.local.services import BUCKET
from tests.faults.cluster import Cluster
from tests.faults.conftest import NewScenario, mostly_long
from tests.faults.invariants import check_checked, check_everything
from tests.faults.large import KEEPING, write
from tests.faults.rules import Act, Rule
from tests.faults.world import CHECKED, CHUNKS, World

pytestmark = pytest.mark.faults

STEPS = {
    "reading": Rule("refuse", "GetObject", "/in/", "w0", nth=4),
    "having read": Rule("lose", "GetObject", "/in/", "w0", nth=4),
    "beginning an upload": Rule("refuse", "CreateMultipartUpload", client="w0", nth=2),
    "having begun an upload": Rule("lose", "CreateMultipartUpload", client="w0", nth=2),
    "uploading": Rule("refuse", "UploadPart", client="w0", nth=2),
    "having uploaded": Rule("lose", "UploadPart", client="w0", nth=2),
    "staging an object": Rule("refuse", "PutObject", "/staged/", "w0", nth=2),
    "having staged an object": Rule("lose", "PutObject", "/staged/", "w0", nth=2),
    "storing completions": Rule("refuse", "PutObject", "completions/", "w0", nth=2),
    "having stored completions": Rule("lose", "PutObject", "completions/", "w0", nth=2),
}


@pytest.mark.chaos
def test_nothing_goes_wrong(new: NewScenario, cluster: Cluster) -> None:
    scenario = new()
    ended = cluster.start(scenario).wait()
    assert ended.code == 0, ended
    assert ended.summary["mapped"] == CHUNKS
    check_everything(scenario)


@pytest.mark.parametrize("step", mostly_long(STEPS, {"storing completions"}))
def test_a_worker_dies(new: NewScenario, cluster: Cluster, step: str) -> None:
    scenario, rule = new(), STEPS[step]
    rule.call = cluster.workers["w0"].kill
    scenario.inject(rule)
    ended = cluster.start(scenario).wait()
    assert rule.happened.is_set()
    assert ended.code == 0, ended
    check_everything(scenario)


CHECKS = {
    "storing rows in quarantine": Rule("refuse", "PutObject", ".rejected.parquet", "w0", nth=2),
    "having stored rows in quarantine": Rule("lose", "PutObject", ".rejected", "w0", nth=2),
    "having stored columns for checks": Rule("lose", "PutObject", "/checks/", "w0", nth=3),
}


@pytest.mark.long
@pytest.mark.parametrize("step", mostly_long(CHECKS, {"having stored rows in quarantine"}))
def test_a_worker_dies_while_it_checks(new: NewScenario, cluster: Cluster, step: str) -> None:
    scenario, rule = new(changes=CHECKED), CHECKS[step]
    rule.call = cluster.workers["w0"].kill
    scenario.inject(rule)
    ended = cluster.start(scenario).wait()
    assert rule.happened.is_set()
    assert ended.code == 0, ended
    check_checked(scenario)


@pytest.mark.long
@pytest.mark.parametrize("act", mostly_long(("refuse", "lose"), {"lose"}))
def test_a_worker_dies_while_it_copies(
    new: NewScenario, world: World, cluster: Cluster, act: Act
) -> None:
    scenario = new(input=write(world), **KEEPING)
    rule = Rule(act, "UploadPartCopy", client="w[01]")
    rule.call = lambda request: cluster.workers[request.client].kill()
    scenario.inject(rule)
    ended = cluster.start(scenario).wait()
    assert rule.happened.is_set()
    assert ended.code == 0, ended
    check_everything(scenario)


PARTS = {
    "reading a piece": Rule("refuse", "GetObject", "/in.csv", "w0", nth=2),
    "having staged a file": Rule("lose", "PutObject|UploadPart", client="w0"),
}
"""Steps of an ingest of a large file, whose pieces and files are task runs on the cluster."""


@pytest.mark.long
@pytest.mark.parametrize("step", mostly_long(PARTS, {"having staged a file"}))
def test_a_worker_dies_while_it_ingests(world: World, cluster: Cluster, step: str) -> None:
    """Another worker does its part, in the same command; docs/guides/ingest.md has a row."""
    place = f"s3://{BUCKET}/{step.replace(' ', '-')}/"
    text = b"id,note\n" + b"".join(b'%d,"line\nof ""%d"""\n' % (i, i) for i in range(3000))
    world.storage.put(f"{place}in.csv", text)
    file = world.folder / f"{step.replace(' ', '-')}.yaml"
    file.write_text(
        f"name: notes\nfiles: {{uri: {place}in.csv, range_bytes: 10000}}\n"
        f"output: {{uri: {place}out/, file_bytes: 8000}}\n"
    )
    rule = PARTS[step]
    rule.call = cluster.workers["w0"].kill
    world.proxy.reset(rule)
    ended = cluster.give("ingest", str(file)).wait()
    assert rule.happened.is_set()
    assert ended.code == 0, ended
    assert ended.summary["rows"] == 3000
    objects = world.storage.objects(f"{place}out/")
    frames = [pl.read_parquet(io.BytesIO(world.storage.get(info.uri).data)) for info in objects]
    assert len(frames) > 1
    assert pl.concat(frames).sort("id").equals(pl.read_csv(text))
    again = cluster.give("ingest", str(file)).wait()
    assert (again.code, again.summary["already"]) == (0, True)
