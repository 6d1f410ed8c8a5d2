"""A file with holes, and the ranges that fill it."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.runs.worker import sparse_file
from pipeline.runs.worker.sparse_file import SparseFile, WholeFile, coalesce

SPANS = st.lists(
    st.tuples(st.integers(0, 60 << 20), st.integers(0, 40 << 20)).map(lambda s: (s[0], s[0] + s[1]))
)


@given(SPANS)
def test_ranges_cover_what_is_asked_for_and_little_more(spans: list[tuple[int, int]]) -> None:
    spans = [(start, stop) for start, stop in spans if start < stop]
    found = coalesce(spans)
    assert found == sorted(found)
    assert all(0 < stop - start <= sparse_file.RANGE_BYTES for start, stop in found)
    assert all(a[1] <= b[0] for a, b in pairwise(found))
    for start, stop in spans:
        covered = sum(max(0, min(stop, b) - max(start, a)) for a, b in found)
        assert covered == stop - start
    # What nobody asked for lies in gaps that are not worth a request.
    edges = sorted(spans)
    reach, gaps = 0, 0
    for start, stop in edges:
        if reach and 0 < start - reach <= sparse_file.GAP_BYTES:
            gaps += start - reach
        reach = max(reach, stop)
    asked, reach = 0, 0
    for start, stop in edges:
        asked += max(0, stop - max(start, reach))
        reach = max(reach, stop)
    assert sum(b - a for a, b in found) == asked + gaps


def test_what_is_written_is_read_at_its_place() -> None:
    with SparseFile(1 << 30) as file:
        file.write(1 << 29, memoryview(b"middle"))
        file.write(0, memoryview(b"start"))
        with open(file.path, "rb") as seen:
            assert seen.read(7) == b"start\0\0"
            seen.seek(1 << 29)
            assert seen.read(6) == b"middle"
            assert os.fstat(seen.fileno()).st_size == 1 << 30
            assert os.fstat(seen.fileno()).st_blocks * 512 <= 1 << 20  # holes take no memory
        path = file.path
    file.close()
    assert not os.path.exists(path)


def test_without_memory_files_an_unnamed_one_on_disk_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    file = SparseFile(100)
    file.write(10, memoryview(b"x"))
    with open(file.path, "rb") as seen:
        assert seen.read()[10:11] == b"x"
    file.close()
    assert not os.path.exists(file.path)


def test_an_object_that_is_whole_needs_a_file_only_where_a_path_does() -> None:
    file = WholeFile(memoryview(b""))
    file.write(0, memoryview(bytearray(b"PARX middle")))
    file.write(0, memoryview(b"PAR1"))
    file.write(11, memoryview(b" end"))
    assert file.read(5, 6) == b"middle"
    assert file.read(12, 100) == b"end"
    assert file.scanned == b"PAR1 middle end"
    with open(file.path, "rb") as seen:
        assert seen.read() == file.scanned
    path = file.path
    file.close()
    file.close()
    assert not os.path.exists(path)
