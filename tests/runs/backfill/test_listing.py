"""List runs: the newest first, a backfill as one entry, which gives its runs their state."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import RunCancelledError, UsageError
from pipeline.runs.admin.status import RunStatus
from pipeline.runs.backfill.listing import BackfillBrief, KnownRuns, Listing
from pipeline.runs.driver.summary import RunIncompleteError
from tests.support.backfills import Days, days
from tests.support.small import Small

CODE = """
def same(frame, number=0):
    return frame

def fails(frame):
    raise ValueError("no")
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.chdir(tmp_path)
    small = Small(tmp_path, CODE)
    small.write("a.parquet", pl.DataFrame({"id": [1]}))
    return small


def known(small: Small) -> KnownRuns:
    return KnownRuns(small.storage, [small.output])


def runs_in(listing: Listing) -> list[str]:
    return [entry.run for entry in listing.entries if isinstance(entry, RunStatus)]


def test_the_newest_runs_come_first_and_older_ones_are_counted(small: Small) -> None:
    ids = [
        small.run(small.job(mode="overwrite", params={"number": number})).run for number in range(4)
    ]
    with pytest.raises(RunIncompleteError) as caught:
        small.run(small.job("fails"))
    failed = caught.value.summary.run
    listing = known(small).newest(3)
    assert (runs_in(listing), listing.more) == ([failed, ids[3], ids[2]], 2)
    assert runs_in(known(small).all()) == [failed, *reversed(ids)]
    # Looks further back until there are enough.
    assert runs_in(known(small).newest(2, ["done"])) == [ids[3], ids[2]]
    assert runs_in(known(small).newest(20, ["failed"])) == [failed]
    assert runs_in(known(small).newest(20, ["silent"])) == []
    assert known(small).find("last").run == failed
    assert known(small).ledger(ids[0][:12]).run == ids[0]


def test_an_ambiguous_id_names_a_few(small: Small) -> None:
    for number in range(7):
        small.run(small.job(mode="overwrite", params={"number": number}))
    with pytest.raises(UsageError) as caught:
        known(small).find("")
    assert caught.value.message.startswith("7 runs start with '': ")
    assert caught.value.message.count("(test, ") == 5
    assert caught.value.message.endswith(" and 2 older ones")
    with pytest.raises(UsageError, match="there is no run 'zz'"):
        known(small).find("zz")


def test_a_backfill_is_one_entry_and_its_runs_have_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    world = Days(tmp_path)
    world.write(days("2024-02-27", 6))
    store = world.create(world.job(), windows_per_run=1, max_active=2)
    runs = KnownRuns(world.storage, [store.output])
    [brief] = runs.newest(20).entries
    assert isinstance(brief, BackfillBrief)
    assert (brief.state, brief.windows, brief.chunks) == ("new", 6, 12)

    driver = world.driver(store)

    def cancel_at_two(progress: object, phase: str) -> None:
        if driver.progress.counts()["done"] >= 2:
            store.change("test", lambda _: {"cancelled": True})
            driver.desired.read_at = 0.0

    driver.listen = cancel_at_two
    with pytest.raises(RunCancelledError):
        driver.run()
    runs = KnownRuns(world.storage, [store.output])
    [brief] = runs.newest(20).entries
    assert isinstance(brief, BackfillBrief)
    assert (brief.backfill, brief.state) == (store.backfill, "cancelled")
    states = {entry.state for entry in runs.all().entries}
    assert states <= {"done", "cancelled"}
    with pytest.raises(UsageError) as caught:
        runs.find(store.backfill[:8])
    assert caught.value.hint == f"chunkmap backfill status {store.backfill}"
