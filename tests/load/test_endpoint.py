"""Loads into an HTTP endpoint: at least once, and with its keys exactly once."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest

from pipeline.config.load_file import LoadFile, load_file_of
from pipeline.errors import ChunkmapError, LoadFileError, StateError, UsageError
from pipeline.http_answers import Waits
from pipeline.load.connect import open_load
from pipeline.load.endpoint import EndpointLoad
from pipeline.load.errors import (
    DestinationBusyError,
    DestinationError,
    DestinationUnavailableError,
    LoadFailedError,
    ReplacedCommitsError,
    TableMismatchError,
)
from pipeline.load.records import LoadProgress, LoadSummary
from pipeline.load.store import LoadStore
from tests.load.targets import ids
from tests.servers.endpoint import Answer, Endpoint, taking
from tests.support.published_frames import Frames

SECRET = "tok-3n/secret+value"
AUTH = {"into.http.auth": {"env": "ROWS_TOKEN"}}


@dataclass(frozen=True)
class Sender:
    """Loads of one output into an endpoint."""

    output: Frames
    endpoint: Endpoint

    def file(self, **http: Any) -> LoadFile:
        return load_file_of(
            {
                "name": "x",
                "input.uri": self.output.uri,
                "into.uri": self.endpoint.url,
                "into.http": {"rows": 2, "retries": 2, **http},
            }
        )

    def open(
        self, listen: Callable[[LoadProgress], None] = lambda now: None, **http: Any
    ) -> EndpointLoad:
        load = open_load(self.file(**http), self.output.settings, self.output.storage, listen)
        assert isinstance(load, EndpointLoad)
        load.waits = Waits(0.001, 0.002)
        return load

    def load(
        self, listen: Callable[[LoadProgress], None] = lambda now: None, **http: Any
    ) -> LoadSummary:
        return self.open(listen, **http).run()


@pytest.fixture
def sender(output: Frames) -> Iterator[Sender]:
    with taking(Endpoint()) as endpoint:
        yield Sender(output, endpoint)


def test_rows_are_sent_in_batches_and_only_new_commits_again(sender: Sender) -> None:
    sender.output.add(ids(1, 2, 3), ids(4, 5))
    seen: list[LoadProgress] = []
    first = sender.load(seen.append)
    assert sender.endpoint.ids == [1, 2, 3, 4, 5]
    assert [len(request.rows) for request in sender.endpoint.requests] == [2, 2, 1]
    assert (first.rows, len(first.commits), first.requests, first.held) == (5, 1, 3, 0)
    assert [(now.rows, now.of_rows) for now in seen] == [(2, 5), (4, 5), (5, 5), (5, 5)]
    assert sender.load().rows == 0
    sender.output.add(ids(6))
    again = sender.load()
    assert (again.rows, again.held) == (1, 1)
    assert sender.endpoint.ids == [1, 2, 3, 4, 5, 6]
    assert len({request.key for request in sender.endpoint.requests}) == 4


def test_a_preview_sends_nothing(sender: Sender) -> None:
    sender.output.add(ids(1, 2, 3))
    shown = sender.open().preview()
    assert (shown.rows, shown.dry_run, sender.endpoint.requests) == (3, True, [])
    assert sender.load().rows == 3


@pytest.mark.parametrize("kind", ["ndjson", "array"])
def test_values_are_json(sender: Sender, kind: str) -> None:
    frame = pl.DataFrame(
        {
            "id": [2**63 - 1],
            "price": pl.Series([Decimal("1234567890.10")], dtype=pl.Decimal(38, 2)),
            "day": [date(2024, 2, 29)],
            "at": pl.Series([datetime(2024, 2, 29, 1, 2, 3, 4)]),
            "zone": pl.Series([datetime(2024, 7, 1, tzinfo=UTC)]).dt.convert_time_zone(
                "Europe/Berlin"
            ),
            "hour": [time(1, 2)],
            "kind": pl.Series(["a"], dtype=pl.Categorical()),
            "none": pl.Series([None], dtype=pl.Int8),
            "nested": [{"a": [1, None], "b": {"d": date(2024, 1, 1)}}],
            "text": ['ä"\n'],
        }
    )
    sender.output.add(frame)
    sender.load(format=kind)
    [request] = sender.endpoint.requests
    assert request.rows == [
        {
            "id": 2**63 - 1,
            "price": "1234567890.10",
            "day": "2024-02-29",
            "at": "2024-02-29T01:02:03.000004",
            "zone": "2024-07-01T00:00:00+00:00",
            "hour": "01:02:00",
            "kind": "a",
            "none": None,
            "nested": {"a": [1, None], "b": {"d": "2024-01-01"}},
            "text": 'ä"\n',
        }
    ]
    assert "ä".encode() in request.body


def test_batches_are_limited_in_bytes(sender: Sender) -> None:
    sender.output.add(ids(*range(10, 20)))
    sender.load(rows=100, max_bytes=70, format="array")
    assert all(len(request.body) <= 70 for request in sender.endpoint.requests)
    assert sender.endpoint.ids == list(range(10, 20))
    sender.output.add(ids(1).with_columns(v=pl.lit("x" * 200)))
    with pytest.raises(LoadFailedError, match=r"row of commit .* bytes as JSON") as caught:
        sender.load(max_bytes=70)
    assert "into.http.max_bytes" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(429, headers={"Retry-After": "0"}),
        Answer(500),
        Answer(503, headers={"Retry-After": "0.1"}),
        Answer(409),
        Answer(200, is_lost=True),
        Answer(200, seconds=0.6),
    ],
    ids=["429", "500", "503", "409", "lost", "slow"],
)
def test_a_batch_is_sent_again_with_the_same_key(sender: Sender, answer: Answer) -> None:
    sender.endpoint.script = lambda number: answer if number == 2 else None
    sender.output.add(ids(1, 2, 3, 4))
    summary = sender.load(timeout=0.3)
    first, second, again = sender.endpoint.requests
    assert (second.key, second.body) == (again.key, again.body) and first.key != second.key
    assert sender.endpoint.ids == [1, 2, 3, 4]
    assert (summary.rows, summary.requests) == (4, 2)
    wait = float(answer.headers.get("Retry-After", 0))
    assert again.at - second.at >= wait


def test_a_long_wait_is_an_error_at_once(sender: Sender) -> None:
    sender.endpoint.script = lambda number: Answer(429, headers={"Retry-After": "3600"})
    sender.output.add(ids(1))
    with pytest.raises(DestinationUnavailableError, match="asks to wait 3,600 s") as caught:
        sender.load()
    assert "into.http.max_wait" in (caught.value.hint or "")
    assert len(sender.endpoint.requests) == 1


def test_a_failing_endpoint_ends_the_load_and_the_next_goes_on(sender: Sender) -> None:
    sender.endpoint.script = lambda number: Answer(500) if number > 1 else None
    sender.output.add(ids(1, 2, 3, 4))
    with pytest.raises(DestinationUnavailableError, match="answers 500"):
        sender.load()
    assert len(sender.endpoint.requests) == 4, "a first attempt and two retries"
    sender.endpoint.script = lambda number: None
    preview = sender.open().preview()
    summary = sender.load()
    assert (preview.rows, summary.rows, summary.requests) == (2, 2, 1)
    assert sender.endpoint.ids == [1, 2, 3, 4]


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_not_sent_again(
    sender: Sender, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWS_TOKEN", SECRET)
    sender.endpoint.script = lambda number: Answer(status)
    sender.output.add(ids(1))
    with pytest.raises(DestinationError, match=f"answers {status}") as caught:
        sender.load(auth={"env": "ROWS_TOKEN"})
    assert "ROWS_TOKEN" in (caught.value.hint or "") and caught.value.exit_code == 2
    [request] = sender.endpoint.requests
    assert request.headers["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in str(caught.value) + repr(caught.value) + str(caught.value.hint)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(400, SECRET.replace("/", "\\/").encode()),
        Answer(400, quote(SECRET).encode()),
        Answer(400, gzip.compress(SECRET.encode()), {"Content-Encoding": "gzip"}),
        Answer(302, headers={"Location": "https://host:none/"}),
        Answer(is_lost=True),
    ],
)
def test_no_spelling_of_a_secret_is_shown(
    sender: Sender, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWS_TOKEN", SECRET)
    sender.endpoint.script = lambda number: answer
    sender.output.add(ids(1))
    with pytest.raises(ChunkmapError) as caught:
        sender.load(auth={"env": "ROWS_TOKEN"}, retries=0)
    shown = f"{caught.value!s} {caught.value.hint}"
    assert "tok-3n" not in shown
    # The context is pickled with an error, and the request of an error of httpx holds the headers.
    assert caught.value.__context__ is None


def test_a_secret_is_stored_and_shown_nowhere(
    sender: Sender, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("ROWS_TOKEN", SECRET)
    sender.endpoint.script = lambda number: (
        Answer(400, f"no {SECRET} may\nwrite this".encode()) if number == 2 else None
    )
    sender.output.add(ids(1, 2, 3))
    with pytest.raises(LoadFailedError, match=r"answers 400 .*rows 3 to 3: no \*+ may write") as c:
        sender.load(auth={"env": "ROWS_TOKEN", "header": "X-Key", "value": "key {secret}"})
    assert SECRET not in str(c.value)
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert stored and not any(SECRET.encode() in path.read_bytes() for path in stored)
    monkeypatch.delenv("ROWS_TOKEN")
    with pytest.raises(UsageError, match="variable ROWS_TOKEN holds no secret"):
        sender.load(auth={"env": "ROWS_TOKEN"})
    with pytest.raises(UsageError, match="only a flow can read"):
        sender.load(auth={"secret": "rows"})


@pytest.mark.parametrize(
    ("answer", "kind", "says", "hint"),
    [
        (Answer(302, headers={"Location": "https://u:p@other.example/"}), DestinationError,
         "redirects to https://other.example,", "into.uri"),
        (Answer(413), LoadFailedError, "answers 413 .* bytes", "into.http.max_bytes"),
        (Answer(422, b"\x1b[31mbad"), LoadFailedError, "answers 422", "into.http"),
    ],
)  # fmt: skip
def test_refusals_are_not_repeated(
    sender: Sender, answer: Answer, kind: type[UsageError], says: str, hint: str
) -> None:
    sender.endpoint.script = lambda number: answer
    sender.output.add(ids(1))
    with pytest.raises(kind, match=says) as caught:
        sender.load()
    assert hint in (caught.value.hint or "") and len(sender.endpoint.requests) == 1
    assert "\x1b" not in caught.value.message


def test_a_load_that_is_stopped_goes_on_after_the_last_acknowledged_batch(sender: Sender) -> None:
    sender.output.add(ids(*range(7)))
    sender.output.add(ids(7))

    def stop(now: LoadProgress) -> None:
        if now.rows == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sender.load(stop)
    summary = sender.load(rows=3)
    assert sender.endpoint.ids == list(range(8))
    assert [len(request.rows) for request in sender.endpoint.requests] == [2, 2, 3, 1]
    assert (summary.rows, len(summary.commits)) == (4, 2)


def test_a_batch_that_was_not_recorded_is_sent_again_with_the_same_key(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender.output.add(ids(1, 2, 3, 4))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LoadStore, "advance", die)
        sender.load()
    assert sender.load().rows == 4
    first, again, _ = sender.endpoint.requests
    assert (first.key, first.body) == (again.key, again.body)
    assert sender.endpoint.ids == [1, 2, 3, 4]


def test_a_commit_that_was_sent_but_not_recorded_is_not_sent_again(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender.output.add(ids(1, 2))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LoadStore, "record", die)
        sender.load()
    summary = sender.load()
    assert (summary.rows, len(summary.commits), len(sender.endpoint.requests)) == (0, 1, 1)
    assert sender.load().commits == ()


def test_of_two_loads_at_once_one_ends_and_no_key_is_new(sender: Sender) -> None:
    sender.output.add(ids(1, 2, 3, 4, 5, 6))
    other: list[LoadSummary] = []

    def listen(now: LoadProgress) -> None:
        if now.rows == 2:
            other.append(sender.load())

    with pytest.raises(DestinationBusyError, match=r"another load of .* is running") as caught:
        sender.load(listen)
    assert caught.value.exit_code == 3
    assert other[0].rows == 4
    assert sender.endpoint.ids == [1, 2, 3, 4, 5, 6]
    assert sender.load().rows == 0


def test_replaced_commits_are_refused(sender: Sender) -> None:
    sender.output.add(ids(1, 2, 3))
    sender.endpoint.script = lambda number: Answer(400) if number == 2 else None
    with pytest.raises(LoadFailedError):
        sender.load()
    sender.output.add(ids(9), mode="overwrite")
    with pytest.raises(ReplacedCommitsError, match="2 rows of commit") as caught:
        sender.load()
    folder = LoadStore(sender.output.storage, sender.output.uri, sender.endpoint.url).prefix
    assert folder in (caught.value.hint or "")
    for info in sender.output.storage.objects(folder):
        sender.output.storage.delete(info.uri)
    assert sender.load().rows == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": 99}, "99 rows of commit .* has 3"),
        ({"destination": "https://other.example/"}, "it is of a load into https://other"),
        ({"version": 7}, "format 7"),
        ({"rows": -1}, "rows"),
    ],
)
def test_damaged_progress_is_an_error(sender: Sender, change: dict[str, Any], says: str) -> None:
    sender.output.add(ids(1, 2, 3))
    sender.endpoint.script = lambda number: Answer(400) if number == 2 else None
    with pytest.raises(LoadFailedError):
        sender.load()
    storage = sender.output.storage
    uri = LoadStore(storage, sender.output.uri, sender.endpoint.url).progress_uri
    stored = json.loads(storage.get(uri).data)
    del stored["sha256"]
    storage.put(uri, json.dumps(stored | change).encode())
    with pytest.raises(StateError, match=says):
        sender.load()
    assert len(sender.endpoint.requests) == 2


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (pl.DataFrame({"id": [1, 2, 3], "f": [1.0, 2.0, float("nan")]}), "column f in row 3 of"),
        (pl.DataFrame({"id": [1], "l": [[float("inf")]]}), "column l in row 1 of"),
        (pl.DataFrame({"day": pl.Series([3_000_000], dtype=pl.Int32).cast(pl.Date)}), "a value of"),
        (pl.DataFrame({"id": [1], "at": pl.Series([1], dtype=pl.Datetime("ns"))}), "column at"),
    ],
)
def test_values_that_json_lacks_are_named(sender: Sender, frame: pl.DataFrame, says: str) -> None:
    sender.output.add(frame)
    with pytest.raises(LoadFailedError, match=says):
        sender.load(rows=100)
    assert sender.endpoint.requests == []


def test_types_that_json_lacks_are_refused(sender: Sender) -> None:
    sender.output.add(pl.DataFrame({"id": [1], "raw": [b"x"], "deep": [[b"x"]], "no": [None]}))
    with pytest.raises(TableMismatchError) as caught:
        sender.load()
    for name in ("raw (Binary)", "deep (List", "no (Null)"):
        assert f"column {name}" in caught.value.message


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"into.uri": "https://user:pw@host/rows"}, "has a secret in it"),
        ({"into.uri": "https://host/rows?api_key=s3cr3t"}, "has a secret in it"),
        ({"into.uri": "https:///rows"}, "no address"),
        ({"into.table": "t"}, "`table` names a table"),
        ({"into.mode": "replace"}, "new rows only"),
        ({"into.password_env": "A"}, "http.auth"),
        ({"into.http": {"headers": {"X-Api-Key": "s3cr3t"}}}, "looks like a secret"),
        ({"into.uri": "a.duckdb", "into.table": "t", "into.http": {"rows": 2}}, "for endpoints"),
    ],
)
def test_files_that_do_not_fit_are_refused(options: dict[str, Any], says: str) -> None:
    base = {"name": "x", "input.uri": "s3://b/out/", "into.uri": "https://host/rows"}
    with pytest.raises(LoadFileError, match=says) as caught:
        load_file_of(base | options)
    assert "s3cr3t" not in str(caught.value) and "pw@" not in str(caught.value)


def test_an_unknown_host_is_named_at_once(output: Frames) -> None:
    output.add(ids(1))
    sender = Sender(output, Endpoint(url="http://no-such-host.invalid/rows"))
    with pytest.raises(DestinationError, match="no-such-host"):
        sender.load()
