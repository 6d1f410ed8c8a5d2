"""A SQLite file, or a PostgreSQL server, as the source: one snapshot, exact values, watermarks."""

from __future__ import annotations

import signal
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.config.ingest_rows import database_kind
from pipeline.errors import (
    ChunkmapError,
    ConflictError,
    SchemaChangedError,
    StateError,
    UsageError,
    is_transient,
)
from pipeline.ingest import readings
from pipeline.ingest.errors import SourceDeniedError, SourceError, SourceUnavailableError
from pipeline.ingest.postgresql import PostgreSQL
from pipeline.ingest.store import IngestStore
from pipeline.ingest.vacuum import expire_ingests
from pipeline.runs.admin.verify import verify_output
from pipeline.storage import Storage
from pipeline.table.publish import rollback
from tests.ingest.conftest import OUTPUT, World
from tests.servers.api import Api
from tests.servers.postgres import PASSWORD, Postgres, postgres
from tests.support.faulty_storage import Faulty, at, lost
from tests.support.instants import instants
from tests.support.memory_storage import AT_ONCE
from tests.support.outputs import copied

URL = "SHOP_DATABASE"


@pytest.fixture
def it() -> World:
    return World(Api([]))


@dataclass(frozen=True)
class Shop:
    """A database with a table `orders` of its own."""

    kind: str
    url: str
    run: Callable[..., list[tuple[Any, ...]]]

    def fill(self, count: int) -> None:
        self.run(
            "CREATE TABLE orders (id BIGINT PRIMARY KEY, name TEXT, price DOUBLE PRECISION)",
            "INSERT INTO orders VALUES " + ", ".join(map(self.row, range(count))),
        )

    def add(self, *ids: int) -> None:
        self.run("INSERT INTO orders VALUES " + ", ".join(map(self.row, ids)))

    @staticmethod
    def row(number: int) -> str:
        return f"({number}, {'NULL' if number % 3 else repr(f'n{number}')}, {number}.5)"

    @staticmethod
    def rows(*ids: int) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "id": ids,
                "name": [None if i % 3 else f"n{i}" for i in ids],
                "price": [i + 0.5 for i in ids],
            }
        )


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture
def in_postgres(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Shop:
    schema = f"s{uuid.uuid4().hex[:12]}"
    server.run(f"CREATE SCHEMA {schema}")
    url = server.socket_uri + f"&options=-csearch_path%3D{schema}"
    monkeypatch.setenv(URL, url)
    return Shop("postgresql", url, lambda *s: server.run(f"SET search_path = {schema}", *s))


@pytest.fixture
def in_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    path = tmp_path / "shop.db"

    def run(*statements: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(path)) as connection:
            found = [connection.execute(statement).fetchall() for statement in statements]
            connection.commit()
        return found[-1]

    run("SELECT 1")
    path.touch()
    monkeypatch.setenv(URL, f"sqlite:{path}")
    return Shop("sqlite", f"sqlite:{path}", run)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def shop(request: pytest.FixtureRequest) -> Shop:
    name = "in_sqlite" if request.param == "sqlite" else "in_postgres"
    found: Shop = request.getfixturevalue(name)
    return found


def sql(**more: Any) -> dict[str, Any]:
    return {"url": {"env": URL}, **({} if "query" in more else {"table": "orders"}), **more}


def incremental(column: str = "id", **more: Any) -> dict[str, Any]:
    return {
        "sql": sql(incremental={"column": column, **more.pop("incremental", {})}, **more),
        "output": {"mode": "append"},
    }


def new_rows(it: World, **more: Any) -> int | None:
    """Number of rows of an ingest; None if there is nothing to do."""
    summary = it.ingest(**incremental(**more))
    return None if summary.already else summary.rows


# -- both databases --------------------------------------------------------------------------------


def test_a_table_and_a_query_arrive_once(it: World, shop: Shop) -> None:
    shop.fill(25)
    summary = it.ingest(sql=sql())
    assert (summary.rows, summary.source, summary.notes) == (25, "sql", ())
    assert it.frame().equals(shop.rows(*range(25)))
    assert verify_output(it.backend.storage(), OUTPUT).problems == ()
    assert it.ingest(sql=sql()).already
    it.forget()
    query = "SELECT id * 2 AS id FROM orders WHERE id < 3; -- the first"
    it.ingest(sql=sql(query=query.replace("; --", " --")))
    assert it.frame()["id"].to_list() == [0, 2, 4]


def test_an_ingest_that_dies_anywhere_is_finished_with_one_snapshot(it: World, shop: Shop) -> None:
    """What an attempt that died has read never mixes with what the next one reads."""
    shop.fill(25)
    calls = it.calls(sql=sql())
    for number in instants(len(calls), shop.kind):
        it.forget()
        shop.run("DELETE FROM orders WHERE id >= 25")
        it.dies(number, sql=sql())
        is_read, has_parts = bool(it.state("reading.json")), bool(it.state("/readings/"))
        shop.add(25)
        summary = it.ingest(sql=sql())
        if not summary.already:
            assert bool(summary.notes) == (has_parts and not is_read)
        assert it.frame().equals(shop.rows(*range(25 if is_read else 26)))
        assert len({name.split("/")[2] for name in it.state("/readings/")}) == 1
        assert verify_output(it.backend.storage(), OUTPUT).problems == ()


def test_replies_of_the_storage_may_be_lost(it: World, in_sqlite: Shop) -> None:
    in_sqlite.fill(5)
    for number in instants(len(it.calls(sql=sql()))):
        it.forget()
        faulty = Faulty(it.backend, at(number, "after"), lost)
        it.ingest(Storage({"s3": faulty}, AT_ONCE), sql=sql())
        assert it.frame().equals(in_sqlite.rows(*range(5)))


def test_only_what_is_new_is_read(it: World, shop: Shop) -> None:
    shop.fill(10)
    assert new_rows(it) == 10
    assert new_rows(it) is None
    shop.add(10, 11)
    assert new_rows(it) == 2
    shop.add(5_000_000_000)
    assert new_rows(it) == 1
    assert new_rows(it) is None
    assert it.frame().equals(shop.rows(*range(12), 5_000_000_000))
    states = it.backend.storage()
    expire_ingests(states, OUTPUT, older_than=-10.0)
    assert it.state("/readings/") == []
    shop.add(5_000_000_001)
    assert new_rows(it) == 1


def test_the_watermark_moves_only_with_the_publish(it: World, in_sqlite: Shop) -> None:
    """A driver that dies before the publish leaves it where it is; a rollback moves it back."""
    shop = in_sqlite
    shop.fill(10)
    new_rows(it)
    shop.add(10)
    backend = copied(it.backend)
    calls = it.calls(**incremental())
    for number in instants(len(calls), shop.kind):
        it.backend = copied(backend)
        it.dies(number, **incremental())
        new_rows(it)
        assert it.frame().equals(shop.rows(*range(11)))
    rollback(it.table_log)
    assert it.frame().height == 10
    assert new_rows(it) == 1
    assert it.frame().equals(shop.rows(*range(11)))


def test_another_query_of_the_same_name_goes_on_after_it(it: World, in_sqlite: Shop) -> None:
    shop = in_sqlite
    shop.fill(10)
    new_rows(it)
    shop.add(10, 11)
    more = {"query": "SELECT * FROM orders WHERE id <> 11"}
    assert new_rows(it, **more) == 1
    assert it.frame().equals(shop.rows(*range(11)))


def test_rows_that_were_read_before_the_output_changed_are_refused(
    it: World, in_sqlite: Shop
) -> None:
    shop = in_sqlite
    shop.fill(10)
    new_rows(it)
    shop.add(10)
    calls = it.calls(**incremental())
    it.dies(calls.index("stage"), **incremental())
    rollback(it.table_log)
    with pytest.raises(ConflictError, match="from 9 on"):
        new_rows(it)


def test_a_row_without_a_value_is_not_lost(it: World, shop: Shop) -> None:
    shop.run("CREATE TABLE orders (id INT, at TEXT)", "INSERT INTO orders VALUES (1, NULL)")
    with pytest.raises(SourceError, match="have no value in column 'at'") as caught:
        new_rows(it, column="at")
    assert "IS NOT NULL" in (caught.value.hint or "")


def test_no_rows_are_no_error(it: World, in_sqlite: Shop) -> None:
    shop = in_sqlite
    shop.run("CREATE TABLE orders (id INT, at TEXT)")
    assert new_rows(it) == 0
    assert new_rows(it) is None
    shop.run("INSERT INTO orders VALUES (1, 'x')")
    assert new_rows(it) == 1
    with pytest.raises(UsageError, match="has no column 'nr'"):
        it.ingest(name="others", **incremental("nr"))


def test_rows_are_not_read_twice_by_another_column(it: World, in_sqlite: Shop) -> None:
    in_sqlite.fill(10)
    new_rows(it)
    with pytest.raises(
        UsageError, match="which were read by 'id'; by 'price' they would"
    ) as caught:
        new_rows(it, column="price")
    assert "another output" in (caught.value.hint or "")
    it.forget()
    it.ingest(sql=sql(), output={"mode": "append"})
    with pytest.raises(UsageError, match="which were read as a whole"):
        new_rows(it)


def test_a_renamed_ingest_goes_on_after_its_rows(it: World, in_sqlite: Shop) -> None:
    """Its id counts, also after ingests that were given up."""
    in_sqlite.fill(10)
    for _ in range(2):
        it.dies(it.calls(**incremental()).index("stage"), **incremental())
        [name] = {name.partition("/")[0] for name in it.state("ingest.json")} - given_up(it)
        IngestStore(it.backend.storage(), OUTPUT, name).note_discarded()
    new_rows(it)
    in_sqlite.add(10)
    assert it.ingest(name="renamed", **incremental()).rows == 1
    assert it.frame().equals(Shop.rows(*range(11)))


def test_the_same_table_of_another_database_is_another_ingest(
    it: World, in_sqlite: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_sqlite.fill(10)
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE orders (id BIGINT, name TEXT, price DOUBLE PRECISION)")
        connection.execute(f"INSERT INTO orders VALUES {Shop.row(3)}, {Shop.row(4)}")
        connection.commit()
    monkeypatch.setenv("OTHER_DATABASE", f"sqlite:{other}")
    elsewhere = incremental()
    elsewhere["sql"] = {**elsewhere["sql"], "url": {"env": "OTHER_DATABASE"}}
    assert it.ingest(name="eu", **incremental()).rows == 10
    assert it.ingest(name="us", **elsewhere).rows == 2, "from its own beginning on"
    in_sqlite.add(10)
    assert it.ingest(name="eu", **incremental()).rows == 1
    assert it.ingest(name="us", **elsewhere).already
    assert sorted(it.frame()["id"].to_list()) == [0, 1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10]


def given_up(it: World) -> set[str]:
    return {name.partition("/")[0] for name in it.state("discarded.json")}


def test_large_results_become_many_parts(
    it: World, in_sqlite: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "PART_BYTES", 300)
    shop = in_sqlite
    shop.fill(200)
    summary = it.ingest(sql=sql(), output={"file_bytes": 400})
    assert summary.pages > 5 and summary.files > 1
    assert it.frame().equals(shop.rows(*range(200)))


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"table": "nothing"}, SourceError, "nothing"),
        ({"query": "SELEC 1"}, SourceError, "syntax|near"),
        ({"query": "SELECT 1 AS a, 2 AS a"}, UsageError, "two columns 'a'"),
        ({"query": "DELETE FROM orders"}, SourceError, "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(
    it: World, shop: Shop, more: dict[str, Any], kind: type[ChunkmapError], message: str
) -> None:
    shop.fill(1)
    with pytest.raises(kind, match=message) as caught:
        it.ingest(sql=sql(**more))
    assert caught.value.hint
    assert shop.run("SELECT count(*) FROM orders") == [(1,)]


def test_the_address_is_nowhere(it: World, shop: Shop) -> None:
    shop.fill(3)
    it.ingest(sql=sql())
    address = shop.url.partition(":")[2].strip("/").encode()
    assert not [uri for uri, blob in it.backend.stored.items() if address in blob.data]


def test_a_missing_or_wrong_address_is_named(it: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL, raising=False)
    with pytest.raises(UsageError, match=f"the variable {URL} holds no address"):
        it.ingest(sql=sql())
    for url in ("mysql://u:hush@h/d", "postgresql://u:hush@x@h/d", "nonsense-hush"):
        monkeypatch.setenv(URL, url)
        with pytest.raises(UsageError, match=f"the address in the variable {URL}") as caught:
            it.ingest(sql=sql())
        assert "hush" not in str(caught.value) + (caught.value.hint or "")
    with pytest.raises(UsageError, match=r"Secret block x \(sql.url.secret\)"):
        it.ingest(sql={"url": {"secret": "x"}, "table": "t"})


@pytest.mark.parametrize(
    "url",
    [
        *(f"postgresql://u:hu{odd}sh@h/d" for odd in "@/#?[]"),
        "postgresql://u:p@[::1/d",
        "postgresql://u:12/hush@h/d",
        "sqlite:",
        "mariadb://h/d",
        "h/d",
    ],
)
def test_addresses_that_would_be_taken_apart_wrongly_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"is not a valid address|names") as caught:
        database_kind(url)
    assert "sh@h" not in str(caught.value)


def test_a_damaged_part_is_named(it: World, in_sqlite: Shop) -> None:
    in_sqlite.fill(5)
    it.dies(it.calls(sql=sql()).index("stage"), sql=sql())
    [name] = it.state("/readings/")
    uri = f"{OUTPUT.rstrip('/')}.chunkmap/ingests/{name}"
    data = it.backend.get(uri).data
    it.backend.put(uri, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StateError, match="does not match its checksum") as caught:
        it.ingest(sql=sql())
    assert "--discard" in (caught.value.hint or "")


# -- SQLite ----------------------------------------------------------------------------------------


def test_values_of_sqlite_are_exact(it: World, in_sqlite: Shop) -> None:
    in_sqlite.run(
        "CREATE TABLE orders (id, big, mixed, late, bin, none)",
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 4999) "
        "INSERT INTO orders SELECT i, 9223372036854775807 - i, CASE WHEN i % 2 THEN i ELSE i + 0.5 "
        "END, CASE WHEN i > 4000 THEN 'x' END, x'00ff', NULL FROM n",
    )
    summary = it.ingest(sql=sql())
    frame = it.frame()
    assert summary.drift.empty == ("none",)
    assert frame.schema == {
        "id": pl.Int64(),
        "big": pl.Int64(),
        "mixed": pl.Float64(),
        "late": pl.String(),
        "bin": pl.Binary(),
    }
    assert frame["big"].to_list() == [2**63 - 1 - i for i in range(5000)]
    assert frame["mixed"].to_list()[:4] == [0.5, 1.0, 2.5, 3.0]
    assert frame["late"].null_count() == 4001
    assert frame["bin"][0] == b"\x00\xff"
    assert len(it.state("/readings/")) <= 2, "nulls do not end a part"


def test_texts_and_numbers_in_a_column_need_a_type(it: World, in_sqlite: Shop) -> None:
    in_sqlite.run(
        "CREATE TABLE orders (id, v)", "INSERT INTO orders VALUES (1, 1), (2, 'x'), (3, 2.5)"
    )
    with pytest.raises(SchemaChangedError, match="column 'v' of table orders of SQLite has") as e:
        it.ingest(sql=sql())
    assert "types: {v: string}" in (e.value.hint or "")
    it.ingest(sql=sql(), types={"v": "string"})
    assert it.frame()["v"].to_list() == ["1", "x", "2.5"]


def test_sqlite_that_is_declared_gets_dates_and_decimals(it: World, in_sqlite: Shop) -> None:
    in_sqlite.run(
        "CREATE TABLE orders (id, day, total)",
        "INSERT INTO orders VALUES (1, '2024-03-01', '12.50'), (2, NULL, '0.10')",
    )
    it.ingest(sql=sql(), types={"day": "date", "total": "decimal[18, 2]"})
    assert it.frame().rows() == [
        (1, date(2024, 3, 1), Decimal("12.50")),
        (2, None, Decimal("0.10")),
    ]


def test_a_watermark_of_texts_is_compared_as_the_column(it: World, in_sqlite: Shop) -> None:
    """A number that was stored as a text is no number."""
    in_sqlite.run(
        "CREATE TABLE orders (id INT, at TEXT)", "INSERT INTO orders VALUES (1, '9'), (2, '10')"
    )
    assert new_rows(it, column="at") == 2
    in_sqlite.run("INSERT INTO orders VALUES (3, '91'), (4, '8')")
    assert new_rows(it, column="at") == 1
    in_sqlite.run("CREATE TABLE o2 AS SELECT id, 1 AS at FROM orders")
    with pytest.raises(UsageError, match="the output was read up to '91' of column 'at'"):
        new_rows(it, column="at", query="SELECT * FROM o2")


def test_a_sqlite_file_that_is_missing_is_not_made(it: World, tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    with pytest.raises(UsageError, match="there is no SQLite file"):
        it.ingest(sql={"url": f"sqlite:{path}", "table": "t"})
    assert not path.exists()
    path.write_bytes(b"no database" * 100)
    with pytest.raises(SourceError, match="not a database"):
        it.ingest(sql={"url": f"sqlite:{path}", "table": "t"})


def test_a_lag_needs_a_clock(it: World, in_sqlite: Shop) -> None:
    in_sqlite.fill(1)
    with pytest.raises(UsageError, match="SQLite has no clock"):
        new_rows(it, incremental={"lag": "5m"})


# -- PostgreSQL ------------------------------------------------------------------------------------

TYPES = {
    "i2": ("1::int2", 1, pl.Int16()),
    "i8": ("9223372036854775807", 2**63 - 1, pl.Int64()),
    "f4": ("1.5::float4", 1.5, pl.Float32()),
    "ok": ("true", True, pl.Boolean()),
    "n": ("12345678901234567890.12::numeric(38, 2)", None, pl.Decimal(38, 2)),
    "n0": ("7::numeric(5)", Decimal(7), pl.Decimal(5, 0)),
    "t": ("'ä'::varchar(9)", "ä", pl.String()),
    "c": ("'ab'::char(4)", "ab  ", pl.String()),
    "d": ("'0044-03-15 BC'::date", None, pl.Date()),
    "h": ("'23:59:59.999999'::time", time(23, 59, 59, 999999), pl.Time()),
    "ts": ("'2024-03-01 12:00'::timestamp", datetime(2024, 3, 1, 12), pl.Datetime("us")),
    "tz": (
        "'2024-03-01 12:00+02'::timestamptz",
        datetime(2024, 3, 1, 10, tzinfo=UTC),
        pl.Datetime("us", "UTC"),
    ),
    "j": ("""'{"a": 1.10}'::json""", '{"a": 1.10}', pl.String()),
    "jb": ("""'{"a":1.10}'::jsonb""", '{"a": 1.10}', pl.String()),
    "u": (
        "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid",
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        pl.String(),
    ),
    "b": ("'\\x00ff'::bytea", b"\x00\xff", pl.Binary()),
    "a": ("ARRAY[1, NULL, 3]", [1, None, 3], pl.List(pl.Int32())),
    "aj": ("ARRAY['[1]'::jsonb]", ["[1]"], pl.List(pl.String())),
    "ae": ("'{}'::text[]", [], pl.List(pl.String())),
    "x": ("NULL::int8", None, pl.Int64()),
}


@pytest.mark.integration
def test_values_of_postgresql_are_exact(it: World, in_postgres: Shop) -> None:
    columns = ", ".join(f"{value[0]} AS {name}" for name, value in TYPES.items())
    it.ingest(sql=sql(query=f"SELECT 1 AS id, {columns}"))
    frame = it.frame()
    assert dict(frame.drop("id").schema) == {name: kind for name, (_, _, kind) in TYPES.items()}
    row = frame.drop("d").row(0, named=True)  # Python has no dates before the year 1.
    assert row["n"] == Decimal("12345678901234567890.12")
    assert frame["d"].cast(pl.Int32)[0] == -735160
    shown = {name: value for name, (_, value, _) in TYPES.items() if name not in ("n", "d")}
    assert {name: row[name] for name in shown} == shown


@pytest.mark.sampled(4)
@pytest.mark.integration
@pytest.mark.parametrize(
    ("value", "message", "declared", "kept"),
    [
        ("1.5::numeric", "numeric without a precision", "decimal[9, 3]", Decimal("1.500")),
        ("150::numeric(3, -1)", "numeric without a precision", "int64", 150),
        ("'NaN'::numeric(9, 2)", "has NaN", "", None),
        ("'10.0.0.1'::inet", "has type inet", "string", "10.0.0.1/32"),
        ("'1 day'::interval", "has type interval", "string", "P1D"),
        ("'1'::money", "has type money", "", None),
        ("3000000000::oid", "has type oid", "string", "3000000000"),
        ("int4range(1, 5)", "whose values no type keeps", "string", "[1,5)"),
        ("ARRAY[1.5::numeric]", r"has type numeric\[\]", "string", "{1.5}"),
        ("ARRAY[[1, 2], [3, 4]]", "an array of 2 dimensions", "", None),
        ("'infinity'::timestamptz", "infinite", "", None),
        ("'-infinity'::timestamp", "infinite", "", None),
        ("'infinity'::date", "infinite", "", None),
        ("ARRAY['infinity'::date]", "infinite", "", None),
        ("'294276-12-31'::timestamp", "too far away", "", None),
        ("'24:00'::time", "the time 24:00", "", None),
    ],
)
def test_values_that_would_change_are_refused_or_declared(
    it: World, in_postgres: Shop, value: str, message: str, declared: str, kept: Any
) -> None:
    query = sql(query=f"SELECT 1 AS id, {value} AS v")
    with pytest.raises((SourceError, SchemaChangedError), match=message) as caught:
        it.ingest(sql=query)
    assert "column 'v'" in str(caught.value) and "sql.query" in (caught.value.hint or "")
    if declared:
        it.ingest(sql=query, types={"v": declared})
        assert it.frame()["v"].to_list() == [kept]


def test_a_secret_is_masked_before_a_message_is_cut() -> None:
    url = "postgresql://u:hush-hush@h/d"
    message = PostgreSQL(url, "t")._message(ValueError("ERROR: " + "x" * 495 + " hush-hush"))
    assert message.startswith("xxx") and "hus" not in message


@pytest.mark.integration
@pytest.mark.parametrize("rows", [{}, {"query": "SELECT * FROM orders WHERE name <> 'x'"}])
def test_parallel_queries_read_one_snapshot(
    it: World, in_postgres: Shop, monkeypatch: pytest.MonkeyPatch, rows: dict[str, str]
) -> None:
    """Rows move between ranges while they are read; each arrives once, as it was."""
    in_postgres.run(
        "CREATE TABLE orders (id BIGINT, name TEXT)",
        "INSERT INTO orders SELECT i, 'n' || i FROM generate_series(-500, 1499) i",
        "INSERT INTO orders VALUES (NULL, 'none')",
    )
    opened, joined = [], PostgreSQL._join

    def join(self: PostgreSQL, cursor: Any, snapshot: str) -> None:
        """Change everything after the snapshot was taken, before each query."""
        joined(self, cursor, snapshot)
        opened.append(snapshot)
        in_postgres.run("UPDATE orders SET id = 999 - id, name = 'changed'")

    monkeypatch.setattr(PostgreSQL, "_join", join)
    summary = it.ingest(sql=sql(split_by="id", connections=3, **rows))
    assert len(opened) == 3 and len(set(opened)) == 1
    assert summary.rows == 2001
    frame = it.frame()
    assert frame["id"].to_list() == [None, *range(-500, 1500)]
    assert frame["name"].to_list() == ["none", *(f"n{i}" for i in range(-500, 1500))]
    assert len({name.rpartition("/")[2][:5] for name in it.state("/readings/")}) == 12


@pytest.mark.integration
def test_a_lag_leaves_late_commits_to_the_next_ingest(it: World, in_postgres: Shop) -> None:
    """A row with an older time that is committed after a newer one was read is not lost."""
    in_postgres.run(
        "CREATE TABLE orders (id INT, at TIMESTAMPTZ)",
        "INSERT INTO orders VALUES (1, now() - interval '1 hour'), (2, now() - interval '4 min')",
    )
    lag = {"lag": "5m"}
    assert new_rows(it, column="at", incremental=lag) == 1
    in_postgres.run("INSERT INTO orders VALUES (3, now() - interval '4 min 30 s')")
    assert new_rows(it, column="at", incremental=lag) is None
    # Four minutes and some later: both are older than the lag, and so is the watermark.
    in_postgres.run("UPDATE orders SET at = now() - interval '5 min' WHERE id > 1")
    assert new_rows(it, column="at", incremental=lag) == 2
    assert it.frame()["id"].to_list() == [1, 2, 3]
    assert new_rows(it, column="at", incremental={}) is None


@pytest.mark.sampled(2)
@pytest.mark.integration
@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("numeric(18, 2)", "9.10", "10"),
        ("date", "'2024-03-09'", "'2024-03-10'"),
        ("timestamptz", "'2024-03-09 10:00:00.000001'", "'2024-03-09 10:00:00.000002'"),
        ("text", "'it''s \\'", "'it''t'"),
    ],
)
def test_watermarks_of_each_type(
    it: World, in_postgres: Shop, kind: str, first: str, second: str
) -> None:
    in_postgres.run(
        f"CREATE TABLE orders (id INT, at {kind})", f"INSERT INTO orders VALUES (1, {first})"
    )
    assert new_rows(it, column="at") == 1
    assert new_rows(it, column="at") is None
    in_postgres.run(f"INSERT INTO orders VALUES (2, {second})")
    assert new_rows(it, column="at") == 1


@pytest.mark.integration
@pytest.mark.parametrize("value", ["'infinity'::timestamptz", "1.5::float8", "'NaN'::numeric"])
def test_a_watermark_that_would_end_all_reading_is_refused(
    it: World, in_postgres: Shop, value: str
) -> None:
    query = f"SELECT 1 AS id, {value} AS at"
    with pytest.raises(UsageError, match="by which new rows cannot be found"):
        it.ingest(**incremental("at", query=query), types={"at": "decimal[9, 2]"})


@pytest.mark.integration
def test_errors_of_connecting_have_a_next_step(
    it: World, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = server.uri().replace("@", ":{}@").replace("{}", "p%3Aw%2Fd%20%40%3F%C3%A9")
    cases: list[tuple[str, type[ChunkmapError], str]] = [
        (right.replace("p%3Aw", "wrong"), SourceDeniedError, "password authentication failed"),
        (right.replace("127.0.0.1", "nowhere.invalid"), SourceDeniedError, "nowhere.invalid"),
        (right.replace("/postgres", "/nodb"), SourceDeniedError, "nodb"),
        (right.replace(f":{server.port}", ":1"), SourceUnavailableError, "refused"),
        (right + "?nooption=1", UsageError, "is not valid"),
        (right.replace("%C3%A9", "%zz"), UsageError, "is not valid"),
    ]
    monkeypatch.delenv("PGPASSWORD", raising=False)
    for url, kind, message in cases:
        monkeypatch.setenv(URL, url)
        with pytest.raises(kind, match=message) as caught:
            it.ingest(sql=sql())
        text = str(caught.value) + (caught.value.hint or "")
        assert caught.value.hint and PASSWORD not in text and "p%3Aw" not in text
    monkeypatch.setenv(URL, right)
    assert it.ingest(sql=sql(query="SELECT 1 AS id")).rows == 1


@pytest.mark.integration
def test_a_table_without_rights_and_a_query_that_fails_midway(it: World, in_postgres: Shop) -> None:
    in_postgres.run("CREATE TABLE orders (id INT)")
    role = f"r{uuid.uuid4().hex[:12]}"
    in_postgres.run(f"CREATE ROLE {role} LOGIN")
    url = in_postgres.url.replace("user=loader", f"user={role}")
    with pytest.raises(SourceDeniedError, match="permission denied") as caught:
        it.ingest(sql={"url": url, "query": "SELECT * FROM pg_authid"})
    assert "GRANT" in (caught.value.hint or "")
    with pytest.raises(SourceError, match="division by zero"):
        it.ingest(sql=sql(query="SELECT 1 / (9000 - i) AS id FROM generate_series(1, 9001) i"))
    assert it.state("reading.json") == []


@pytest.mark.integration
def test_a_connection_that_is_lost_midway_is_named(it: World, in_postgres: Shop) -> None:
    """And the next attempt reads again from the beginning."""
    in_postgres.run(
        "CREATE TABLE orders (id INT, pad TEXT)",
        "INSERT INTO orders SELECT i, repeat('x', 1000) FROM generate_series(1, 9) i",
        "CREATE FUNCTION cut(i INT) RETURNS INT LANGUAGE plpgsql AS $$ BEGIN "
        "IF i = 5 AND (SELECT count(*) FROM orders) = 9 THEN "
        "PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN i; END $$",
    )
    query = sql(query="SELECT cut(id) AS id FROM orders")
    with pytest.raises(SourceUnavailableError, match="broke off") as caught:
        it.ingest(sql=query)
    assert is_transient(caught.value) and "from the beginning" in (caught.value.hint or "")
    in_postgres.run("INSERT INTO orders VALUES (10, '')")
    assert it.ingest(sql=query).rows == 10


@pytest.mark.integration
def test_a_server_that_is_restarted_midway_is_named(it: World) -> None:
    """What was read before counts for nothing, and the next attempt reads everything."""
    with postgres() as server:
        server.run("CREATE TABLE orders AS SELECT i AS id FROM generate_series(1, 40000) i")
        url, joined = server.socket_uri, PostgreSQL._join

        def join(self: PostgreSQL, cursor: Any, snapshot: str) -> None:
            joined(self, cursor, snapshot)
            server.stop(signal.SIGQUIT)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PostgreSQL, "_join", join)
            with pytest.raises(SourceUnavailableError, match="broke off"):
                it.ingest(sql={"url": url, "table": "orders"})
        server.start()
        server.run("INSERT INTO orders VALUES (0)")
        assert it.ingest(sql={"url": url, "table": "orders"}).rows == 40001
