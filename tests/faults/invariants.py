"""What holds after every fault, checked against plain Polars over the input."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl
from polars.testing import assert_frame_equal

from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.driver.summary import RunSummary
from pipeline.runs.ledger.records import Progress
from pipeline.storage import StagedObject
from pipeline.table.evidence import find_rejected
from pipeline.table.log import TableLog
from tests.faults.faulty import doubled, keeps_rules
from tests.faults.world import Scenario

Oracle = Callable[[pl.LazyFrame], pl.LazyFrame]


@dataclass(frozen=True, slots=True)
class Seen:
    """What an output holds for somebody who knows nothing of manifests."""

    frame: pl.DataFrame
    keys: set[str]


def oracle(scenario: Scenario, transform: Oracle = doubled) -> pl.DataFrame:
    """The expected output: the transform over the whole input, without any engine."""
    return transform(read_all(scenario, scenario.input).frame.lazy()).collect().sort("id")


def read_all(scenario: Scenario, uri: str) -> Seen:
    """Every object under a prefix, as a plain glob would read it."""
    storage = scenario.storage
    found = sorted(info.uri for info in storage.objects(uri))
    frames = [pl.read_parquet(io.BytesIO(storage.get(uri).data)) for uri in found]
    return Seen(pl.concat(frames) if frames else pl.DataFrame(), {k[len(uri) :] for k in found})


def check_output(scenario: Scenario, expected: pl.DataFrame) -> None:
    """The output: each row once, as the oracle has it, and nothing that no manifest names."""
    table_log = TableLog(scenario.storage, scenario.output)
    head, _ = table_log.head()
    assert head.publishing is None, "a claim is left"
    manifest = table_log.manifest(head.current)
    files = table_log.snapshot(manifest)
    seen = read_all(scenario, scenario.output)
    assert seen.keys == set(files["key"].to_list()), "the glob and the manifest differ"
    if not expected.is_empty():
        assert seen.frame["id"].is_unique().all(), "a row is there twice"
        assert_frame_equal(seen.frame.sort("id"), expected)
    assert files["rows"].sum() == expected.height
    if len(manifest.commits) == 1:
        assert manifest.commits[0].rows == expected.height
    sizes = {info.uri: info.size for info in scenario.storage.objects(scenario.output)}
    assert {scenario.output + k: size for k, size in files.select("key", "bytes").rows()} == sizes


def check_ledger(scenario: Scenario, progress: Progress, redone: int, late: bool) -> None:
    """The ledger: every chunk done, not more of them twice than can be explained, no uploads."""
    assert progress.completions.height == len(scenario.ledger.plan())
    assert progress.duplicates.height <= redone, progress.duplicates.select(
        "index", "batch", "worker"
    )
    every = pl.concat([progress.completions, progress.duplicates])
    published = TableLog(scenario.storage, scenario.output)
    chosen = published.snapshot(published.manifest()) if late else every
    named = set(chosen["upload"].to_list())
    if late:
        # The source of a copy may arrive once more after it was copied and deleted.
        named = {upload for upload in named if not upload.startswith("s3://")}
    left = {
        item.upload
        for uri in every["uri"].unique()
        for item in scenario.storage.staged_under(uri, scenario.ledger.state + "staged/")
    }
    assert not (left & named), "an upload that the run names is unfinished"


def check_everything(
    scenario: Scenario, *, redone: int = 0, late: bool = False, transform: Oracle = doubled
) -> RunSummary:
    """Hold all invariants against a run that has ended well.

    Args:
        scenario: Whose command has succeeded at last.
        redone: Most chunks that may have been completed twice (those in flight at the fault).
        late: A delayed request may have staged an output after the publish. A vacuum then removes
            it, and nothing else.
        transform: What the job's transform comes to, for the oracle.

    Returns:
        The summary of one more run, which has mapped nothing.
    """
    scenario.inject()
    progress = scenario.ledger.read()
    check_ledger(scenario, progress, redone, late)
    check_output(scenario, oracle(scenario, transform))
    before = TableLog(scenario.storage, scenario.output).head()
    again = scenario.run_here()
    assert (again.state, again.mapped) == ("done", 0), again
    assert TableLog(scenario.storage, scenario.output).head() == before, "it was published again"
    if late:
        vacuum(scenario.storage, scenario.output, older_than=0.0)
        assert not unfinished(scenario), "a vacuum leaves what nobody needs"
        check_output(scenario, oracle(scenario, transform))
    return again


def check_quarantine(scenario: Scenario, expected: pl.DataFrame) -> None:
    """The quarantine of the published commits: each of these rows once, and nothing else."""
    table_log = TableLog(scenario.storage, scenario.output)
    folders = find_rejected(table_log, table_log.manifest()).values()
    seen = [read_all(scenario, folder).frame for folder in folders]
    rows = pl.concat(seen).sort("id")
    assert_frame_equal(rows.select(expected.columns), expected)
    every = read_all(scenario, f"{scenario.ledger.state}quarantine/").frame
    assert every.height == rows.height, "there are rows of no commit"


def check_checked(scenario: Scenario) -> None:
    """Hold all invariants against a run of a job with `CHECKED`, and its quarantine."""
    check_everything(scenario, transform=lambda frame: doubled(frame).filter(keeps_rules()))
    whole = doubled(read_all(scenario, scenario.input).frame.lazy())
    check_quarantine(scenario, whole.filter(~keeps_rules()).sort("id").collect())


def unfinished(scenario: Scenario) -> list[StagedObject]:
    """Uploads under the output that were neither completed nor aborted."""
    area = scenario.ledger.state + "staged/"
    return scenario.storage.staged_under(scenario.output, area)
