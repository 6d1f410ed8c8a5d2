"""What is PostgreSQL's own: its types, rights and passwords, restarts, and lost replies."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest

from pipeline.errors import UsageError
from pipeline.load.errors import (
    DestinationBusyError,
    DestinationError,
    DestinationUnavailableError,
    LoadFailedError,
    TableMismatchError,
)
from pipeline.load.postgresql import PostgreSQL, PostgresSession
from pipeline.load.records import LoadProgress
from tests.load.targets import PostgresTarget, ids
from tests.load.typed import TYPES
from tests.servers.postgres import PASSWORD, CuttingProxy, can_mount, postgres

pytestmark = pytest.mark.integration


@pytest.fixture
def target(in_postgres: PostgresTarget) -> PostgresTarget:
    return in_postgres


def text_of(target: PostgresTarget, column: str) -> list[str | None]:
    rows = target.rows(f'SELECT "{column}"::text FROM t ORDER BY flag NULLS LAST')
    return [row[0] for row in rows]


def test_every_type_has_the_same_values_afterwards(target: PostgresTarget) -> None:
    target.output.add(TYPES)
    assert target.load().rows == 2
    for name, values in {
        "i8": ["-128", None],
        "u8": ["255", None],
        "u32": [str(2**32 - 1), None],
        "u64": [str(2**64 - 1), None],
        "i64": [str(-(2**63)), str(2**63 - 1)],
        "f32": ["1.5", None],
        "f64": ["Infinity", None],
        "price": ["-12345678901234567.89", None],
        "text": ["ä'\"\\\n", None],
        "kind": ["a", None],
        "level": ["low", None],
        "raw": ["\\x00ff", None],
        "day": ["2024-02-29", None],
        "hour": ["23:59:59.999999", None],
        "at_ms": ["2024-02-29 01:00:00", None],
        "at_us": ["0001-01-01 00:00:00", None],
        "list": ["[1, null]", None],
        "struct": ['{"a": 1, "b c": ["x"]}', None],
    }.items():
        assert text_of(target, name) == values, name
    [(took, zone)] = target.rows(
        "SELECT extract(epoch FROM took)::float8, "
        "(at_zone AT TIME ZONE 'UTC')::text FROM t WHERE flag"
    )
    assert took == timedelta(days=2, microseconds=3).total_seconds()
    assert zone == "2024-07-01 00:00:00"
    kinds = dict(
        target.rows(
            "SELECT column_name::text, data_type::text FROM information_schema.columns "
            f"WHERE table_schema = '{target.schema}' AND table_name = 't'"
        )
    )
    assert kinds["struct"] == kinds["list"] == "jsonb"
    assert kinds["u32"] == "bigint" and kinds["u64"] == kinds["price"] == "numeric"
    target.output.add(TYPES)
    assert target.load().rows == 2, "the table that it made fits"
    key = ("i64",)
    target.output.add(TYPES.with_columns(text=pl.lit("new")))
    with pytest.raises(LoadFailedError, match="several rows with the same key"):
        target.load(mode="merge", key=key)


def test_merging_casts_and_keeps_every_type(target: PostgresTarget) -> None:
    target.output.add(TYPES)
    target.load(mode="merge", key=("i64",))
    target.output.add(TYPES.with_columns(text=pl.lit("new")))
    assert target.load(mode="merge", key=("i64",)).rows == 2
    assert text_of(target, "text") == ["new", "new"]
    assert text_of(target, "struct") == ['{"a": 1, "b c": ["x"]}', None]


def test_wider_types_of_the_table_are_filled(target: PostgresTarget) -> None:
    target.run("CREATE TABLE t (v varchar, extra serial, id numeric(30, 2), at date)")
    frame = ids(1, 2).with_columns(at=pl.lit(date(2024, 1, 1)))
    target.output.add(frame.cast({"id": pl.UInt64}))
    target.load()
    assert target.rows("SELECT id::text, v, extra FROM t ORDER BY 1") == [
        ("1.00", "v1", 1), ("2.00", "v2", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (pl.DataFrame({"x": [[b"a"]]}), "x .*JSON has no counterpart of Binary"),
        (pl.DataFrame({"x" * 64: [1]}), "longer than 63 bytes"),
        (pl.DataFrame({"x": [None]}), "holds nulls only"),
    ],
)
def test_what_has_no_counterpart_is_refused_before_anything_is_written(
    target: PostgresTarget, frame: pl.DataFrame, says: str
) -> None:
    target.output.add(frame)
    with pytest.raises(TableMismatchError, match=says):
        target.load()
    assert not target.has_table("_chunkmap_loads")


@pytest.mark.parametrize(
    ("frame", "says", "hint"),
    [
        (pl.DataFrame({"x": ["a\0b"]}), "0x00", r"U\+0000"),
        (pl.DataFrame({"x": [[float("nan")]]}), "cannot be JSON", "NaN"),
    ],
)
def test_values_that_postgresql_cannot_store_are_named(
    target: PostgresTarget, frame: pl.DataFrame, says: str, hint: str
) -> None:
    target.output.add(frame)
    with pytest.raises(LoadFailedError, match=says) as caught:
        target.load()
    assert re.search(hint, caught.value.hint or "")
    assert not target.has_table("t")


@pytest.mark.parametrize("name", [{"table": "t" * 64}, {"schema": "é" * 32}])
def test_a_name_that_would_be_cut_is_refused(target: PostgresTarget, name: dict[str, Any]) -> None:
    target.output.add(ids(1))
    with pytest.raises(UsageError, match="longer than 63 bytes"):
        target.load(**name)


def test_another_table_is_refused_or_widened(target: PostgresTarget) -> None:
    target.run("CREATE TABLE t (id integer, gone date)")
    target.output.add(ids(1))
    with pytest.raises(TableMismatchError) as caught:
        target.load()
    for part in ("id is integer and must hold bigint", "it lacks v", "the output has no gone"):
        assert part in caught.value.message
    target.run("ALTER TABLE t ALTER COLUMN id TYPE bigint, DROP COLUMN gone")
    assert target.load(widen=True).added == ("v",)
    assert target.rows() == [(1, "v1")]


def test_triggers_that_drop_rows_are_noticed(target: PostgresTarget) -> None:
    target.run(
        "CREATE TABLE t (id bigint, v text)",
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN IF NEW.id = 2 THEN RETURN NULL; END IF; RETURN NEW; END'",
        "CREATE TRIGGER odd BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION skip()",
    )
    target.output.add(ids(1, 2, 3))
    with pytest.raises(LoadFailedError, match=r"took 2 rows .* manifest says 3"):
        target.load()
    assert target.rows() == []


# -- access ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "says", "hint"),
    [
        ("postgresql://loader@no-such-host.invalid/db", "no-such-host.invalid", "fix the host"),
        ("postgresql://loader@127.0.0.1:{port}/nothing", "nothing", "CREATE DATABASE"),
        ("postgresql://nobody@127.0.0.1:{port}/postgres", "password authentication", "PGPASSWORD"),
        ("postgresql://loader@127.0.0.1:{port}/postgres?nonsense=1", "nonsense", "fix the URI"),
        (
            "postgresql://loader@127.0.0.1:{port}/postgres?sslmode=verify-full",
            "SSL|certificate", "sslmode",
        ),
    ],
)  # fmt: skip
def test_a_wrong_address_is_named_and_the_password_is_not(
    target: PostgresTarget, uri: str, says: str, hint: str
) -> None:
    database = PostgreSQL(uri.replace("{port}", str(target.server.port)), PASSWORD)
    with pytest.raises(DestinationError, match=says) as caught:
        database.connect()
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == 2
    assert_no_secret(caught.value)


def assert_no_secret(error: BaseException) -> None:
    seen: list[str] = []
    now: BaseException | None = error
    while now is not None:
        seen += [str(now), repr(now), str(getattr(now, "hint", ""))]
        now = now.__cause__
    assert not any(PASSWORD in text or "p%3Aw" in text for text in seen)


def test_a_wrong_password_is_an_error_at_once(target: PostgresTarget) -> None:
    with pytest.raises(DestinationError, match="password authentication failed") as caught:
        replace(target.database, password="wrong-secret").connect()
    assert "wrong-secret" not in str(caught.value)


def test_a_server_that_does_not_run_is_an_error_at_once(target: PostgresTarget) -> None:
    proxy = CuttingProxy(target.server.port)
    proxy.close()
    target.output.add(ids(1))
    with pytest.raises(DestinationUnavailableError, match="refused"):
        replace(target, port=proxy.port).load()


def test_missing_rights_are_named(target: PostgresTarget) -> None:
    user = f"u{target.schema}"
    target.run(f"CREATE ROLE {user} LOGIN PASSWORD 'reader-secret'")
    uri = target.database.uri.replace("loader@", f"{user}@")
    database = PostgreSQL(uri, "reader-secret")
    target.output.add(ids(1))

    class Reader(PostgresTarget):
        @property
        def database(self) -> PostgreSQL:
            return database

    reader = Reader(target.output, target.server, target.schema)
    with pytest.raises(DestinationError, match="schema") as caught:
        reader.load()
    target.run(f"GRANT USAGE ON SCHEMA {target.schema} TO {user}")
    with pytest.raises(DestinationError, match="permission denied for schema") as caught:
        reader.load()
    assert "GRANT USAGE, CREATE ON SCHEMA" in (caught.value.hint or "")
    target.run(f"GRANT CREATE ON SCHEMA {target.schema} TO {user}")
    target.run("CREATE TABLE t (id int8, v text)")
    with pytest.raises(DestinationError, match="permission denied for table t"):
        reader.load()
    target.run(f"GRANT SELECT, INSERT ON t TO {user}")
    assert reader.load().rows == 1


# -- faults ---------------------------------------------------------------------------------------


@contextmanager
def cut(target: PostgresTarget, cuts: int = 1, *, before: bool) -> Iterator[PostgresTarget]:
    proxy = CuttingProxy(target.server.port, cuts, before=before)
    try:
        yield replace(target, port=proxy.port)
        assert proxy.cuts == 0, "each cut was made"
    finally:
        proxy.close()


@pytest.mark.sampled(2)
@pytest.mark.faults
@pytest.mark.parametrize("before", [False, True], ids=["reply lost", "COMMIT lost"])
@pytest.mark.parametrize(
    "mode", ["append", "replace", pytest.param("merge", marks=pytest.mark.long)]
)
def test_a_commit_whose_reply_is_lost_is_looked_up(
    target: PostgresTarget, mode: str, before: bool
) -> None:
    for number in range(3):
        target.output.add(ids(number))
    target.load(table="before")  # The ledger's table is there.
    key = ("id",) if mode == "merge" else ()
    cuts = 1 if mode == "replace" else 2
    with cut(target, cuts, before=before) as through:
        summary = through.load(mode=mode, key=key)
    assert target.rows("SELECT id FROM t ORDER BY id") == [(0,), (1,), (2,)]
    assert (summary.rows, len(summary.commits)) == (3, 3)
    assert target.load(mode=mode, key=key).rows == 0


@pytest.mark.faults
def test_a_first_load_goes_on_where_the_ledger_s_commit_is_lost(target: PostgresTarget) -> None:
    target.output.add(ids(1))
    with cut(target, before=True) as through:
        assert through.load().rows == 1
    assert target.rows() == [(1, "v1")]


@pytest.mark.sampled(2)
@pytest.mark.faults
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
def test_the_database_may_be_restarted_meanwhile(
    target: PostgresTarget, how: signal.Signals
) -> None:
    for number in range(4):
        target.output.add(ids(number))
    with postgres() as server:
        server.run(f"CREATE SCHEMA {target.schema}")
        there = replace(target, server=server)
        seen: list[int] = []

        def listen(now: LoadProgress) -> None:
            if now.commits == 2 and not seen:
                seen.append(now.rows)
                server.stop(how)
                server.start()

        summary = there.load(listen)
        assert seen and summary.rows == 4
        assert there.rows("SELECT id FROM t ORDER BY id") == [(0,), (1,), (2,), (3,)]


@pytest.mark.faults
@pytest.mark.skipif(not can_mount(), reason="no disk can be mounted here")
def test_a_full_disk_is_named_and_what_is_repeated_is_there_once(target: PostgresTarget) -> None:
    frame = pl.DataFrame({"id": range(60_000)}).with_columns(v=pl.lit("x" * 100))
    target.output.add(ids(-1))
    with postgres(disk_bytes=24 << 20) as server:
        server.run_alone(f"CREATE TABLESPACE small LOCATION '{server.folder}/disk'")
        server.run(f"CREATE SCHEMA {target.schema}")
        there = replace(target, server=server, settings=("default_tablespace=small",))
        assert there.load().rows == 1
        filler = "SELECT repeat('y', 1000) FROM generate_series(1, 16000)"
        there.run(f"CREATE TABLE filler TABLESPACE small AS {filler}")
        target.output.add(frame)
        with pytest.raises(LoadFailedError, match="No space left on device") as caught:
            there.load()
        assert "free space" in (caught.value.hint or "")
        assert there.rows("SELECT id FROM t") == [(-1,)]
        there.run("DROP TABLE filler")
        server.run_alone(f"VACUUM {target.schema}.t")
        assert there.load().rows == 60_000
        assert there.rows("SELECT count(*), count(DISTINCT id) FROM t") == [(60_001, 60_001)]


@pytest.mark.faults
def test_two_processes_load_everything_once(target: PostgresTarget) -> None:
    for number in range(5):
        target.output.add(ids(number))
    code = (
        "import json, sys, pipeline\n"
        "done = pipeline.load_output(sys.argv[1], sys.argv[2], 't')\n"
        "print(json.dumps([done.rows, done.held]))"
    )
    command = [sys.executable, "-c", code, target.output.uri, target.into]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    figures = [json.loads(process.communicate(timeout=100)[0]) for process in both]
    assert target.rows("SELECT id FROM t ORDER BY id") == [(i,) for i in range(5)]
    assert sum(rows for rows, _ in figures) == 5


def test_first_loads_of_two_tables_do_not_wait_for_each_other(target: PostgresTarget) -> None:
    target.output.add(ids(1))
    other = replace(target, settings=("lock_timeout=1s",))
    during: list[int] = []

    def listen(now: LoadProgress) -> None:
        if now.rows and not now.commits:
            during.append(other.load(table="other").rows)

    assert target.load(listen).rows == 1
    assert during == [1]
    assert target.rows("SELECT table_name FROM _chunkmap_loads ORDER BY 1") == [("other",), ("t",)]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_load_sees_what_it_has_waited_for_whatever_the_default_isolation(
    target: PostgresTarget, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.output.add(ids(1))
    target.load(table="before")  # The ledger's table is there.
    holder = target.database.connect()
    holder.begin(target.request().table)

    def load_meanwhile(seconds: float) -> None:
        monkeypatch.undo()
        holder.rollback()
        holder.close()
        assert target.load().rows == 1

    monkeypatch.setattr("pipeline.load.postgresql.time.sleep", load_meanwhile)
    level = level.replace(" ", "\\ ")
    strict = replace(target, settings=(f"default_transaction_isolation={level}",))
    summary = strict.load()
    assert (summary.rows, summary.held) == (0, 1)
    assert target.rows() == [(1, "v1")]


def test_a_ledger_of_others_suffices_without_the_right_to_create(target: PostgresTarget) -> None:
    user = f"u{target.schema}"
    target.output.add(ids(1))
    target.run(f"CREATE ROLE {user} LOGIN PASSWORD 'loader-secret'")
    target.load(table="before")
    target.run(
        "CREATE TABLE t (id int8, v text)",
        f"GRANT USAGE ON SCHEMA {target.schema} TO {user}",
        f"GRANT SELECT, INSERT ON t, _chunkmap_loads TO {user}",
    )
    uri = target.database.uri.replace("loader@", f"{user}@")

    class Reader(PostgresTarget):
        @property
        def database(self) -> PostgreSQL:
            return PostgreSQL(uri, "loader-secret")

    assert Reader(target.output, target.server, target.schema).load().rows == 1


def test_a_statement_that_takes_too_long_is_not_repeated(target: PostgresTarget) -> None:
    target.output.add(ids(1))
    target.run(
        "CREATE TABLE t (id bigint, v text)",
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(10); RETURN NEW; END'",
        "CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    with pytest.raises(LoadFailedError, match="statement timeout") as caught:
        replace(target, settings=("statement_timeout=200",)).load()
    assert "statement_timeout" in (caught.value.hint or "")


def test_a_load_that_runs_for_long_is_named(target: PostgresTarget) -> None:
    target.output.add(ids(1))
    session = target.database.connect()
    assert isinstance(session, PostgresSession)
    session.begin(target.request().table)
    pid = session.rows("SELECT pg_backend_pid()")[0][0]
    try:
        with pytest.raises(DestinationBusyError, match=f"server process is {pid}") as caught:
            replace(target, wait_seconds=0.2).load()
        assert caught.value.exit_code == 3
    finally:
        session.rollback()
        session.close()
    assert target.load().rows == 1


def test_readers_see_the_old_version_until_the_commit(target: PostgresTarget) -> None:
    target.output.add(ids(1))
    target.load(mode="replace")
    target.output.add(ids(2), mode="overwrite")
    during: list[list[Any]] = []

    def listen(now: LoadProgress) -> None:
        if now.rows and not now.commits:
            during.append(target.rows("SELECT id FROM t"))

    target.load(listen, mode="replace")
    assert during == [[(1,)]]
    assert target.rows("SELECT id FROM t") == [(2,)]
