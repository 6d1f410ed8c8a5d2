"""Which commits may have a common folder, of many and of a pair."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.table.manifest import CommitEntry
from pipeline.table.replay import may_overlap, overlapping


def entry(name: int, window: str | None, rule: str) -> CommitEntry:
    return CommitEntry(
        name=str(name), run="r", mode="append", window=window, rule=rule, files=1, rows=1, bytes=1
    )


WHOLE = st.just((None, ""))
WINDOW = st.tuples(st.sampled_from(["2024-01", "2024-02"]), st.sampled_from(["day", "month"]))
COMMITS = st.lists(st.one_of(WHOLE, WINDOW), max_size=6)


@given(COMMITS, COMMITS)
def test_many_are_compared_as_pairs_are(
    before: list[tuple[str | None, str]], after: list[tuple[str | None, str]]
) -> None:
    commits = [entry(number, *of) for number, of in enumerate(before)]
    added = [entry(100 + number, *of) for number, of in enumerate(after)]
    expected = [old for old in commits if any(may_overlap(old, new) for new in added)]
    assert list(overlapping(commits, added)) == expected
