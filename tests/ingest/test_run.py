"""Ingests end to end in memory: every kind of pages, stopped anywhere, changed in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from pipeline.errors import (
    ConflictError,
    OutputNotEmptyError,
    SchemaChangedError,
    StateError,
    UsageError,
)
from pipeline.ingest.errors import PageLimitError, SourceError, SourceUnavailableError
from pipeline.ingest.frames import parse_records
from pipeline.ingest.paging import Paging
from pipeline.ingest.store import IngestRecord, IngestStore, PageRecord, find_ingests
from pipeline.ingest.vacuum import discard_ingests, expire_ingests, ingest_states
from pipeline.runs.admin.vacuum import vacuum
from pipeline.runs.admin.verify import verify_output
from pipeline.runs.driver.appending import refuse_appended_since, refuse_appending_again
from pipeline.storage import Storage
from tests.ingest.conftest import OUTPUT, PAGES, World, orders
from tests.servers.api import Reply
from tests.support.faulty_storage import Fault, Faulty, at
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE
from tests.support.runs_by_hand import plan_of, run_of

Worlds = Callable[..., World]


def store_of(it: World) -> IngestStore:
    """The state of the only ingest."""
    [record] = find_ingests(it.backend.storage(), OUTPUT).records
    http = it.definition().http
    assert http is not None
    return IngestStore(it.backend.storage(), OUTPUT, record.ingest, Paging(http))


def pages_of(it: World) -> list[PageRecord]:
    """The stored pages; none if no ingest has begun."""
    if not it.state("ingest.json"):
        return []
    store = store_of(it)
    found = store.stored_pages(1).get(0, [])
    return [store.page(0, number) for number in found]


def expected(count: int) -> pl.DataFrame:
    return pl.DataFrame(orders(count))


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("count", [0, 7, 10, 35])
def test_all_records_of_each_kind_of_pages_arrive_once(
    world: Worlds, kind: str, count: int
) -> None:
    it = world(count, by=kind.partition("-")[0])
    summary = it.ingest(http={"pages": PAGES[kind]})
    if count:
        assert it.frame().equals(expected(count))
    assert (summary.rows, summary.records, summary.already) == (count, count, False)
    # Pages that were asked for ahead may be stored without being told.
    assert summary.asked <= len(it.state("/pages/"))
    # Where pages do not say which is the last, some after it are asked for.
    assert summary.pages == summary.asked or kind in ("page", "offset")
    assert not it.api.twice()
    assert it.backend.uploads == {}
    [entry] = it.table_log.manifest().commits
    assert (entry.run, entry.rows, entry.mode) == (summary.ingest, count, "error")


def test_a_page_size_that_the_api_caps_loses_nothing(world: Worlds) -> None:
    it = world(35, by="page")
    it.ingest(http={"pages": {**PAGES["page-of-total"], "size": 1000}})
    assert it.frame().equals(expected(35))


def test_pages_that_end_before_their_total_are_refused(world: Worlds) -> None:
    body = b'{"data": [{"id": 1}], "meta": {"total": 3}}'
    empty = b'{"data": [], "meta": {"total": 3}}'
    pages = PAGES["page-of-total"]
    it = world(0, script=lambda query, times: Reply(body=body if "page=1" in query else empty))
    with pytest.raises(SourceError, match="end after 2 records, but there are 3"):
        it.ingest(http={"pages": pages})
    assert not it.table_log.manifest().commits


def test_a_page_without_pages_is_one(world: Worlds) -> None:
    it = world(8, by="none")
    assert it.ingest(http={"pages": {"by": "none"}}).rows == 8
    assert it.api.queries == [""]


def test_an_object_is_one_record(world: Worlds) -> None:
    it = world(0, script=lambda query, times: Reply(body=b'{"id": 1, "at": {"lat": 2.5}}'))
    it.ingest(http={"pages": {"by": "none"}, "records": None})
    assert it.frame().to_dicts() == [{"id": 1, "at": {"lat": 2.5}}]


def test_the_same_ingest_again_asks_for_nothing(world: Worlds) -> None:
    it = world()
    first = it.ingest()
    asked, stored = len(it.api.queries), dict(it.backend.stored)
    again = it.ingest(http={"concurrency": 3, "timeout": 5}, types={"price": "decimal[9, 2]"})
    assert (again.already, again.ingest, again.rows) == (True, first.ingest, 35)
    assert len(it.api.queries) == asked
    assert it.backend.stored == stored


@pytest.mark.sampled(3)
@pytest.mark.parametrize("by", ["cursor", "page"])
@pytest.mark.parametrize("fault", ["before", "after"])
def test_an_ingest_that_dies_at_any_request_of_storage_is_finished_by_the_next(
    world: Worlds, by: str, fault: Fault
) -> None:
    it = world(25, by=by)
    # One at a time: how many pages are asked for ahead is a matter of time.
    http = {"concurrency": 1}
    calls = it.calls(http=http)
    assert len(calls) > 12
    for number in instants(len(calls), by, fault):
        it.forget()
        called = it.dies(number, fault, http=http)
        stored = {page.address for page in pages_of(it)}
        it.api.queries.clear()
        it.ingest()
        assert it.frame().equals(expected(25)), called
        asked = {f"{it.api.url}?{query}" if query else it.api.url for query in it.api.queries}
        assert not asked & stored, "no page is asked for again once it is stored"
        assert not it.api.twice()
        assert it.table_log.head()[0].current == 1
        assert verify_output(it.backend.storage(), OUTPUT).problems == ()


@pytest.mark.parametrize("fault", ["before", "after"])
def test_lost_replies_of_storage_change_nothing(world: Worlds, fault: Fault) -> None:
    it = world(25, by="cursor")
    for number in instants(len(it.calls()), fault):
        it.forget()
        it.ingest(Storage({"s3": Faulty(it.backend, at(number, fault))}, AT_ONCE))
        assert it.frame().equals(expected(25))
        assert it.table_log.head()[0].current == 1


@pytest.mark.parametrize("by", ["cursor", "page", "link", "offset"])
def test_an_ingest_whose_source_fails_goes_on_after_the_last_page(world: Worlds, by: str) -> None:
    it = world(45, by=by)
    broken = {"page": "page=3", "offset": "offset=20", "cursor": "after=c20", "link": "page=3"}[by]
    it.api.script = lambda query, times: Reply(500) if broken in query else None
    with pytest.raises(SourceUnavailableError, match="500"):
        it.ingest(http={"retries": 1})
    assert it.api.queries.count(broken) == 2
    kept = len(it.state("/pages/"))
    assert kept >= 2
    it.api.script = lambda query, times: None
    it.api.queries.clear()
    summary = it.ingest()
    assert it.frame().equals(expected(45))
    # Numbered pages are asked for ahead, so perhaps also after the last.
    most = 8 if by in ("page", "offset") else 0
    assert 0 <= summary.asked - (summary.pages - kept) <= most
    assert broken in it.api.queries
    assert not it.api.twice()


def test_a_feed_that_never_ends_is_stopped_at_the_limit(world: Worlds) -> None:
    it = world(45, by="cursor", endless=True)
    with pytest.raises(PageLimitError, match=r"more than 4 pages \(http.max_pages\)"):
        it.ingest(http={"max_pages": 4})
    assert len(it.api.queries) == 4
    it.api.endless = False
    assert it.ingest(http={"max_pages": 5}).asked == 1
    assert it.frame().equals(expected(45))


def test_numbered_pages_are_not_asked_for_beyond_the_limit(world: Worlds) -> None:
    it = world(45, endless=True)
    with pytest.raises(PageLimitError):
        it.ingest(http={"max_pages": 6})
    assert len(it.api.queries) == 6


def test_a_cursor_that_comes_back_is_refused(world: Worlds) -> None:
    body = json.dumps({"data": [{"id": 1}], "meta": {"next": "same"}}).encode()
    it = world(0, by="cursor", script=lambda query, times: Reply(body=body))
    with pytest.raises(SourceError, match="leads back to this page"):
        it.ingest()
    assert len(it.api.queries) == 2


def test_pages_are_fetched_at_the_same_time_within_the_limit(world: Worlds) -> None:
    it = world(200, script=lambda query, times: None)
    slow = it.api._page
    it.api._page = lambda params: _later(slow(params))  # type: ignore[method-assign]
    it.ingest(http={"concurrency": 4})
    assert it.api.at_once == 4
    assert it.frame().equals(expected(200))


def _later(reply: Reply) -> Reply:
    return Reply(reply.status, reply.body, reply.kind, reply.headers, seconds=0.01)


def test_a_page_past_the_end_that_is_an_error_is_none(world: Worlds) -> None:
    """Some APIs answer 404 to a page after the last."""
    late = {"page=4", "page=5", "page=6", "page=7"}
    it = world(30, script=lambda query, times: Reply(404) if query in late else None)
    it.ingest(http={"pages": PAGES["page-to-last"]})
    assert it.frame().equals(expected(30))


def test_offsets_of_short_pages_are_refused(world: Worlds) -> None:
    """The API gives fewer records than it was asked for, and fewer on one page."""

    def script(query: str, times: int) -> Reply | None:
        if query == "offset=10":
            return Reply(body=json.dumps({"data": orders(18)[10:]}).encode())
        return None

    it = world(45, by="offset", script=script)
    with pytest.raises(SourceError, match="page 2 has 8 records and the first page has 10"):
        it.ingest()


def test_offsets_that_end_after_a_short_page_are_refused_if_records_follow_it(
    world: Worlds,
) -> None:
    """The API limits the bytes of a page: the empty page begins after the last record."""

    def script(query: str, times: int) -> Reply | None:
        if query == "offset=10":
            return Reply(body=json.dumps({"data": orders(16)[10:]}).encode())
        return None

    it = world(19, by="offset", script=script)
    with pytest.raises(SourceError, match="page 2 has 6 records and the first page has 10"):
        it.ingest()
    with pytest.raises(SourceError, match="records between them may be missing"):
        it.ingest()
    assert not it.table_log.manifest().commits


# -- accounts ----------------------------------------------------------------------------------


def test_the_same_requests_for_another_account_are_another_ingest(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    append: dict[str, Any] = {"output": {"mode": "append"}}
    for account in ("A", "B"):
        monkeypatch.setenv(f"SHOP_{account}", f"secret-of-account-{account}")
    it = world(7)
    definitions = [
        {"name": name, "http": {"auth": {"env": f"SHOP_{account}"}}, **append}
        for name, account in [("eu", "A"), ("us", "B")]
    ]
    ids = [it.ingest(**definition).ingest for definition in definitions]
    assert it.frame().height == 2 * 7
    assert [it.ingest(**definition).ingest for definition in definitions] == ids
    assert it.frame().height == 2 * 7, "each is published once"
    # Neither a new name nor a new variable makes it another one.
    renamed = it.ingest(**{**definitions[1], "name": "america"})
    assert (renamed.already, renamed.ingest) == (True, ids[1])
    monkeypatch.setenv("SHOP_NEW", "secret-of-account-A")
    moved = it.ingest(**{**definitions[0], "http": {"auth": {"env": "SHOP_NEW"}}})
    assert (moved.already, moved.ingest) == (True, ids[0])


def test_of_two_accounts_that_begin_at_once_one_is_asked_to_come_back(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_A", "secret-of-account-A")
    it = world(7)
    append: dict[str, Any] = {"output": {"mode": "append"}}
    create = IngestStore.create
    begun: list[str] = []

    def late(self: IngestStore, record: IngestRecord) -> IngestRecord:
        if not begun:
            begun.append(record.name)
            it.ingest(name="first", **append)
        return create(self, record)

    monkeypatch.setattr(IngestStore, "create", late)
    second = {"name": "second", "http": {"auth": {"env": "SHOP_A"}}, **append}
    with pytest.raises(ConflictError, match="began at the same time"):
        it.ingest(**second)
    assert it.frame().height == 7
    assert it.ingest(**second).rows == 7
    assert it.frame().height == 2 * 7


# -- windows -----------------------------------------------------------------------------------


def dated(count: int) -> list[dict[str, Any]]:
    return [{"id": i, "day": f"2024-03-{i % 9 + 1:02d}"} for i in range(count)]


def between(params: Any) -> list[dict[str, Any]]:
    return [r for r in dated(90) if params["since"] <= r["day"] < params["until"]]


WINDOW = {"from": "2024-03-01", "to": "2024-03-10", "parameters": ["since", "until"]}


def test_a_window_is_asked_for_in_steps_at_the_same_time(world: Worlds) -> None:
    it = world(0, by="cursor", only=between, size=4)
    it.ingest(window={**WINDOW, "step": "1d"}, types={"day": "date"})
    assert it.frame()["id"].to_list() == list(range(90))
    assert it.frame()["day"].to_list()[:2] == [date(2024, 3, 1), date(2024, 3, 2)]
    firsts = [query for query in it.api.queries if "after" not in query]
    assert len(firsts) == 9
    assert "since=2024-03-09&until=2024-03-10" in firsts
    assert len(it.state("/pages/00008-")) == 3


def test_windows_are_appended_each_once(world: Worlds) -> None:
    it = world(0, by="cursor", only=between)
    append: dict[str, Any] = {"output": {"mode": "append"}}
    march = {**WINDOW, "to": "2024-03-03"}
    it.ingest(window=march, **append)
    it.ingest(window={**WINDOW, "from": "2024-03-03"}, **append)
    assert it.ingest(window=march, **append).already
    assert it.frame()["id"].to_list() == list(range(90))
    assert [entry.mode for entry in it.table_log.manifest().commits] == ["append", "append"]
    with pytest.raises(UsageError, match="would have them twice"):
        it.ingest(options={"refresh": True}, window=march, **append)


def test_partitions_are_replaced(world: Worlds) -> None:
    it = world(0, by="cursor", only=between)
    output: dict[str, Any] = {"output": {"mode": "overwrite-partitions", "partition_by": ["day"]}}
    it.ingest(window=WINDOW, types={"day": "date"}, **output)
    assert {
        uri.rpartition("/")[0][-14:] for uri in it.backend.stored if uri.startswith(OUTPUT)
    } == {f"day=2024-03-{day:02d}" for day in range(1, 10)}
    it.api.only = lambda params: [{"id": 1000 + i, "day": "2024-03-02"} for i in range(3)]
    it.ingest(window={**WINDOW, "to": "2024-03-04"}, types={"day": "date"}, **output)
    assert it.frame().height == 83
    assert verify_output(it.backend.storage(), OUTPUT).problems == ()


# -- refreshing --------------------------------------------------------------------------------


def test_a_refresh_asks_again_and_replaces(world: Worlds) -> None:
    it = world(12, by="cursor")
    overwrite: dict[str, Any] = {"output": {"mode": "overwrite"}}
    first = it.ingest(**overwrite)
    it.api.records = orders(15)
    it.api.script = lambda query, times: Reply(500) if "c10" in query else None
    with pytest.raises(SourceUnavailableError):
        it.ingest(options={"refresh": True}, http={"retries": 0}, **overwrite)
    it.api.script = lambda query, times: None
    it.api.queries.clear()
    second = it.ingest(options={"refresh": True}, **overwrite)
    assert it.api.queries == ["after=c10"], "it goes on with the refresh that was stopped"
    assert second.ingest != first.ingest
    assert it.frame().equals(expected(15))
    assert it.ingest(**overwrite).already


def test_an_output_is_not_emptied(world: Worlds) -> None:
    it = world(12, by="cursor")
    it.ingest(output={"mode": "overwrite"})
    it.api.records = []
    with pytest.raises(SourceError, match="would be emptied"):
        it.ingest(options={"refresh": True}, output={"mode": "overwrite"})
    assert it.frame().equals(expected(12))


def test_an_output_with_files_is_refused_before_anything_is_asked(world: Worlds) -> None:
    it = world(12, by="cursor")
    it.ingest()
    it.api.queries.clear()
    with pytest.raises(OutputNotEmptyError):
        it.ingest(http={"params": {"status": "paid"}})
    assert it.api.queries == []


# -- schemas -----------------------------------------------------------------------------------


APPEND: dict[str, Any] = {"output": {"mode": "append"}}


def two_schemas(world: Worlds, after: list[dict[str, Any]], rule: str, **more: Any) -> World:
    """Ingest some records, then others, by a rule."""
    it = world(0, by="cursor")
    it.api.records = [{"id": 1, "price": 1, "name": "a"}]
    it.ingest(**APPEND)
    it.api.records = after
    it.ingest(http={"params": {"second": 1}}, schema=rule, **APPEND, **more)
    return it


def test_pinned_leaves_new_fields_out_and_fills_missing_ones(world: Worlds) -> None:
    it = two_schemas(world, [{"id": 2, "price": 5, "new": "x"}], "pinned")
    assert it.frame().to_dicts() == [
        {"id": 1, "price": 1, "name": "a"},
        {"id": 2, "price": 5, "name": None},
    ]
    again = it.ingest(http={"params": {"second": 1}}, **APPEND)
    assert (again.drift.new, again.drift.missing) == ({"new": "String"}, ("name",))
    assert "left out 1 new field" in again.notes[0]


def test_widen_adds_new_fields(world: Worlds) -> None:
    it = two_schemas(world, [{"id": 2, "price": 5, "name": "b", "new": "x"}], "widen")
    log = it.table_log
    [old, new] = log.load_all(log.manifest().commits)
    assert dict(new.columns) == {**old.columns, "new": "String"}


def test_fail_names_what_differs_and_nothing_is_published(world: Worlds) -> None:
    with pytest.raises(SchemaChangedError) as caught:
        two_schemas(world, [{"id": 2, "price": 2.5, "new": "x"}], "fail")
    for text in ("new fields: new (String)", "no record has: name", "price (Int64 / Float64)"):
        assert text in str(caught.value)


def test_a_value_that_does_not_fit_is_named_and_its_declaration_asks_for_nothing(
    world: Worlds,
) -> None:
    it = world(0, by="cursor")
    it.api.records = [{"id": 1, "code": 7}, {"id": 2, "code": "x7"}]
    with pytest.raises(SchemaChangedError, match="'code' is Int64 and String") as caught:
        it.ingest()
    assert caught.value.hint is not None
    assert "types: {code: string}" in caught.value.hint
    it.api.queries.clear()
    it.ingest(types={"code": "string"})
    assert it.api.queries == []
    assert it.frame()["code"].to_list() == ["7", "x7"]


def test_declared_types_are_exact(world: Worlds) -> None:
    it = world(0, by="cursor")
    it.api.records = [
        {"id": 1, "total": "19.90", "at": "2024-03-01T12:00:00+02:00", "tags": ["a"]},
        {"id": 2, "total": 0.1, "at": "2024-03-01T12:00:00Z", "tags": []},
    ]
    it.ingest(types={"total": "decimal[18, 2]", "at": "datetime[us, UTC]", "later": "date"})
    frame = it.frame()
    assert frame["total"].to_list() == [Decimal("19.90"), Decimal("0.10")]
    assert frame["at"].to_list() == [
        datetime(2024, 3, 1, 10, tzinfo=UTC),
        datetime(2024, 3, 1, 12, tzinfo=UTC),
    ]
    assert frame.schema["later"] == pl.Date
    # The next ingest reads the same without any declaration.
    it.api.records = [{"id": 3, "total": "1.00", "at": "2024-03-02T00:00:00Z", "tags": ["b"]}]
    with pytest.raises(OutputNotEmptyError):
        it.ingest(http={"params": {"next": 1}})


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bodies of pages that are parsed after they were fetched."""
    bodies = []

    def parse(body: bytes, *, exact: bool) -> Any:
        bodies.append(body)
        return parse_records(body, exact=exact)

    monkeypatch.setattr("pipeline.ingest.rows.parse_records", parse)
    return bodies


@pytest.mark.parametrize("by", ["cursor", "page"])
def test_pages_are_parsed_once(world: Worlds, parsed: list[bytes], by: str) -> None:
    it = world(35, by=by)
    it.ingest()
    assert parsed == []
    assert it.frame().equals(expected(35))


def test_only_pages_that_another_process_has_fetched_are_parsed_again(
    world: Worlds, parsed: list[bytes]
) -> None:
    it = world(35, by="cursor")
    calls = it.calls()
    assert parsed == []
    stores = [number for number, call in enumerate(calls) if call == "put_new"]
    it.dies(stores[3])  # The record of the ingest comes before the pages.
    stored = len(pages_of(it))
    assert 0 < stored < 4
    it.ingest()
    assert len(parsed) == 2 * stored  # For their types, and for their rows.
    assert it.frame().equals(expected(35))


def test_records_beyond_a_limit_are_not_kept(
    world: Worlds, parsed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = world(35, by="cursor")
    monkeypatch.setattr("pipeline.ingest.parsed.KEPT_BYTES", 700)
    it.ingest()
    assert len(parsed) == 3, "one page of four is kept, and the types of all"
    assert it.frame().equals(expected(35))


def test_the_page_that_another_process_has_stored_meanwhile_counts(
    world: Worlds, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = world(35, by="cursor")
    put_page = IngestStore.put_page

    def second(store: IngestStore, page: PageRecord, body: bytes) -> PageRecord:
        if page.number == 2:
            other = body.replace(b'"n1"', b'"of another"')
            put_page(store, page.model_copy(update={"bytes": len(other)}), other)
        return put_page(store, page, body)

    monkeypatch.setattr(IngestStore, "put_page", second)
    it.ingest()
    theirs = pl.col("id").is_between(10, 19) & (pl.col("name") == "n1")
    name = pl.when(theirs).then(pl.lit("of another")).otherwise("name")
    assert it.frame().equals(expected(35).with_columns(name=name))


def test_a_page_with_two_kinds_of_values_is_named_with_those_before_it(world: Worlds) -> None:
    it = world(0, by="cursor", size=2)
    it.api.records = [{"id": i, "code": i} for i in range(3)] + [{"id": 3, "code": "x"}]
    with pytest.raises(SchemaChangedError, match="'code' is Int64 and String in records up to"):
        it.ingest()
    assert len(pages_of(it)) == 2


def test_pages_become_files_of_a_size(world: Worlds) -> None:
    it = world(1000, by="cursor", size=50)
    summary = it.ingest(output={"file_bytes": 1500})
    assert 3 <= summary.files <= 12
    assert it.frame().equals(expected(1000))
    keys = it.table_log.snapshot(it.table_log.manifest())["key"].to_list()
    assert keys == sorted(keys)


# -- storage -----------------------------------------------------------------------------------


def test_staged_files_that_vanish_are_staged_again(world: Worlds) -> None:
    """Before the commit is frozen, and after it was claimed."""
    it = world(25, by="cursor")
    calls = it.calls()
    for number in range(calls.index("stage") + 1, len(calls)):
        it.forget()
        it.dies(number)
        it.backend.uploads.clear()
        it.api.queries.clear()
        it.ingest()
        assert it.api.queries == []
        assert it.frame().equals(expected(25))
        assert verify_output(it.backend.storage(), OUTPUT).problems == ()


@pytest.mark.parametrize("part", ["/pages/", "/plans/", "/files/", "ingest.json"])
def test_damaged_state_is_named(world: Worlds, part: str) -> None:
    it = world(25, by="cursor")
    it.dies(it.calls().index("stage") + 2)
    name = it.state(part)[0]
    uri = f"{OUTPUT.rstrip('/')}.chunkmap/ingests/{name}"
    data = it.backend.get(uri).data
    it.backend.put(uri, data[:-9] + b"damaged!!")
    with pytest.raises(StateError, match=name.rpartition("/")[2]):
        it.ingest()


def test_a_stored_page_cannot_lead_to_another_host(world: Worlds) -> None:
    """Who may write to the state must not get the secret."""
    it = world(25, by="cursor")
    it.api.script = lambda query, times: Reply(500) if "c20" in query else None
    with pytest.raises(SourceUnavailableError):
        it.ingest(http={"retries": 0})
    store = store_of(it)
    page = store.page(0, 2)
    uri = f"{store.prefix}pages/00000-0000002.zst"
    it.backend.stored.pop(uri)
    stolen = page.model_copy(update={"next": "http://evil.example/api/orders"})
    store.put_page(stolen, b"[]".ljust(page.bytes))
    with pytest.raises(StateError, match="which must not get the credentials"):
        it.ingest()


def test_vacuum_spares_an_unfinished_ingest_and_later_removes_its_state(world: Worlds) -> None:
    it = world(25, by="cursor")
    it.dies(it.calls().index("stage") + 2)
    storage = it.backend.storage()

    def clean(**more: Any) -> Any:
        states = ingest_states(storage, OUTPUT)
        return vacuum(storage, OUTPUT, older_than=-10.0, others=states.finished, **more)

    done = clean()
    [own] = done.spared
    assert (done.uploads, len(it.backend.uploads)) == (0, 1)
    assert expire_ingests(storage, OUTPUT, older_than=-10.0).unfinished == (own,)
    assert len(it.state("/pages/")) == 3
    it.api.queries.clear()
    assert it.ingest().ingest == own
    assert it.api.queries == []
    assert clean().spared == ()
    dry = expire_ingests(storage, OUTPUT, older_than=-10.0, dry_run=True)
    assert (dry.ingests, dry.objects) == ((own,), 4)
    expire_ingests(storage, OUTPUT, older_than=-10.0)
    assert it.state("/pages/") == it.state("/files/") == []
    assert it.ingest().already
    assert it.frame().equals(expected(25))


def test_an_unfinished_ingest_can_be_given_up(world: Worlds) -> None:
    it = world(25, by="cursor")
    it.dies(it.calls().index("stage") + 2)
    storage = it.backend.storage()
    states = ingest_states(storage, OUTPUT)
    [own] = states.finished
    assert states.matching(own[:4]) == own
    done = vacuum(storage, OUTPUT, older_than=0.0, others=states.finished, discard=[own])
    assert (done.uploads, it.backend.uploads) == (1, {})
    it.api.queries.clear()
    discard_ingests(storage, OUTPUT, [own])
    assert it.ingest().ingest != own
    assert len(it.api.queries) == 3
    assert it.frame().equals(expected(25))
    assert it.ingest().already


@pytest.mark.parametrize("fault", ["before", "after"])
def test_an_ingest_that_is_given_up_while_it_publishes_is_there_once(
    world: Worlds, fault: Fault
) -> None:
    """What had begun to be published is finished; what had not, never is."""
    it = world(5, by="cursor")  # Numbered pages are asked for ahead: more requests, or fewer.
    changes: dict[str, Any] = {"output": {"mode": "append"}}
    counted = it.calls(**changes)
    for number in range(counted.index("stage"), len(counted)):
        it.forget()
        it.dies(number, fault, **changes)
        storage = it.backend.storage()
        ids = list(ingest_states(storage, OUTPUT).finished)
        discard_ingests(storage, OUTPUT, ids)
        vacuum(storage, OUTPUT, older_than=0.0, others={}, discard=ids)
        it.ingest(**changes)
        assert it.frame().equals(expected(5))


def test_a_run_may_append_to_what_an_ingest_has_appended(world: Worlds) -> None:
    it = world(8, by="page")
    run = run_of(it.backend.storage(), plan_of(2), "append")
    run.complete()
    it.ingest(output={"mode": "append"})
    log = it.table_log
    refuse_appended_since(log, log.manifest(), run.ledger)
    refuse_appending_again(log, log.manifest(), run.ledger.job(), run.plan, run.ledger.run)
