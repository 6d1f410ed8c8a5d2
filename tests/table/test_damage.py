"""Any byte of an output's state may be damaged: a named error, or the same meaning."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StateError
from pipeline.table.log import TableLog
from tests.support.examples import fewer
from tests.support.memory_storage import MemoryBackend
from tests.support.outputs import copied
from tests.support.publishing import OTHER, PLAN, published
from tests.support.runs_by_hand import OUTPUT
from tests.support.windowing import days, published_days


@cache
def published_twice() -> MemoryBackend:
    backend = MemoryBackend()
    published(backend, PLAN, "append", "a")
    published(backend, OTHER, "overwrite-partitions", "b")
    published_days(backend, days(1, 2), "append", "c")  # They share a record.
    return backend


def meaning(backend: MemoryBackend) -> object:
    table_log = TableLog(backend.storage(), OUTPUT)
    manifest = table_log.manifest()
    return manifest, table_log.snapshot(manifest).to_dicts()


def states() -> list[str]:
    kinds = ("HEAD.json", "/manifests/", "/commits/")
    return sorted(u for u in published_twice().stored if any(kind in u for kind in kinds))


@settings(deadline=None, max_examples=fewer(300))
@given(st.data())
def test_damage_is_reported(data: st.DataObject) -> None:
    uri = data.draw(st.sampled_from(states()))
    content = published_twice().stored[uri].data
    at = data.draw(st.integers(0, len(content) - 1))
    changed = content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))])
    bad = changed + content[at + 1 :] if data.draw(st.booleans()) else changed
    backend = copied(published_twice())
    backend.put(uri, bad)
    try:
        assert meaning(backend) == meaning(published_twice())
    except StateError as error:
        assert error.uri.startswith(OUTPUT.rstrip("/") + ".chunkmap/")
        assert error.uri in str(error)
        assert "chunkmap repair" in str(error.hint)
