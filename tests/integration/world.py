"""A folder of a user's own, with a stack of its own, in which tests give real commands."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import polars as pl
import psutil

from pipeline.cluster.local import processes
from pipeline.cluster.local.credentials import s3_settings
from pipeline.cluster.local.state import StateFolder
from pipeline.config.settings import Settings, load_settings
from pipeline.storage import Storage, open_storage
from tests.faults.world import await_that
from tests.support import forks

ROWS = 6_000
FILES = 6
COMMAND = (sys.executable, "-P", "-c", forks.MAIN)
"""As the installed `chunkmap` does, from whatever folder."""
REPOSITORY = Path(__file__).parents[2]
FLOWS = {
    *("ingest", "load", "run", ("pipeline", "run")),
    *(("backfill", "create"), ("backfill", "resume"), ("cluster", "doctor"), ("cluster", "status")),
}
"""Commands that import Prefect or Dask."""
PLANTED = "WORLD_TOKEN", "planted-4b1d-token"
"""A secret in the environment of all commands, and so of the stack's workers: it may be nowhere."""
UPS = "ups.json"
"""What the two commands printed that started the stack."""

READER = ("READER0123456789", "reads-and-lists-only")
BLIND = ("BLIND01234567890", "writes-only")
"""Credentials of limited rights on the stack's S3."""

UNTOUCHED = (
    "s3://demo/sales/",
    "s3://demo/bad/",
    *(f"s3://demo/out/{name}" for name in ("bad", "held", "denied", "unreached", "unclustered")),
)
"""Where bad input must change nothing; other tests write elsewhere meanwhile."""

TRANSFORMS = '''"""Transforms of the tests."""

import os
import time

import polars as pl


def total(frame: pl.LazyFrame, rate: float = 1.0) -> pl.LazyFrame:
    return frame.filter(pl.col("price") > 10).with_columns(total=pl.col("price") * rate)


def slow(frame: pl.LazyFrame, seconds: float = 0.4) -> pl.LazyFrame:
    def nap(rows: pl.DataFrame) -> pl.DataFrame:
        time.sleep(seconds if rows.height else 0)
        return rows

    return frame.map_batches(nap)


def talks(frame: pl.LazyFrame) -> pl.LazyFrame:
    def say(rows: pl.DataFrame) -> pl.DataFrame:
        print(f"a transform has {rows.height} rows")
        return rows

    print("a transform is called")
    return total(frame).map_batches(say)


def dies(frame: pl.LazyFrame) -> pl.LazyFrame:
    def end(rows: pl.DataFrame) -> pl.DataFrame:
        if rows.height:
            os._exit(3)
        return rows

    return frame.map_batches(end)


def tells(frame: pl.LazyFrame) -> pl.LazyFrame:
    from prefect import get_run_logger

    get_run_logger().warning("told by a transform")
    return frame


def eager(frame: pl.LazyFrame) -> pl.DataFrame:
    return frame.collect()


def lacks(frame: pl.LazyFrame) -> pl.LazyFrame:
    return frame.with_columns(total=pl.col("prize") * 2)


def groups(frame: pl.LazyFrame) -> pl.LazyFrame:
    return frame.group_by("shop").agg(pl.col("price").sum()).sort("shop")


def split(frame: pl.LazyFrame, seconds: float = 0.0) -> dict[str, pl.LazyFrame]:
    is_dear = pl.col("price") > 50
    frame = slow(frame, seconds)
    return {"dear": frame.filter(is_dear), "cheap": frame.filter(~is_dear).select("id")}


def remarks(frame: pl.LazyFrame) -> pl.LazyFrame:
    ids = frame.select("id").collect()["id"].to_list()
    return pl.LazyFrame({"id": ids, "remark": [[str(i)] if i % 6000 > 5900 else None for i in ids]})
'''


AnyProcess = subprocess.Popen[str] | forks.Running


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def data(self) -> dict[str, Any]:
        """The one object on stdout."""
        assert self.out.count("\n") == 1, self.out
        found: dict[str, Any] = json.loads(self.out)
        return found


@dataclass(frozen=True)
class World:
    """The folder."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def settings(self) -> Settings:
        return load_settings(cwd=self.root)

    @cached_property
    def storage(self) -> Storage:
        return open_storage(self.settings)

    def variables(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(REPOSITORY), **self.environment, **more}

    def start(self, *arguments: str, **variables: str) -> forks.Running:
        """Give a command and do not wait for it."""
        return forks.start(
            *arguments,
            cwd=self.root,
            variables=self.variables(**variables),
            flows=_is_flow(arguments),
        )

    def chunkmap(self, *arguments: str, **variables: str) -> Answer:
        """Give a command."""
        clock = time.perf_counter()
        said = forks.give(
            *arguments,
            cwd=self.root,
            variables=self.variables(**variables),
            seconds=250,
            flows=_is_flow(arguments),
        )
        return Answer(said.returncode, said.stdout, said.stderr, time.perf_counter() - clock)

    def job(
        self, name: str, transform: str = "shop.transforms:total", source: str = "", **more: Any
    ) -> str:
        """Write a job file; returns its name. Its output is s3://demo/out/NAME/."""
        job: dict[str, Any] = {
            "name": name,
            "input": {"uri": source or "s3://demo/sales/"},
            "chunks": {"target": "16KiB"},
            "transform": transform,
            "output": {"uri": f"s3://demo/out/{name}/"},
        }
        for key, value in more.items():
            job[key] = {**job[key], **value} if isinstance(job.get(key), dict) else value
        # JSON is YAML.
        (self.root / f"{name}.yaml").write_text(json.dumps(job, indent=1))
        return f"{name}.yaml"

    def ask_prefect(self, path: str, body: object) -> Any:
        """What Prefect's API answers to a POST, as its pages send it: with password and token."""
        access = self.settings.prefect.environment()
        api, password = access["PREFECT_API_URL"], access["PREFECT_API_AUTH_STRING"].encode()
        headers = {
            "Authorization": f"Basic {base64.b64encode(password).decode()}",
            "Content-Type": "application/json",
        }
        # The server keeps one token per client, and other tests ask at the same time.
        client = uuid.uuid4().hex
        token = Request(f"{api}/csrf-token?client={client}", headers=headers)
        with urlopen(token) as answer:
            headers["Prefect-Csrf-Token"] = json.load(answer)["token"]
        headers["Prefect-Csrf-Client"] = client
        with urlopen(Request(f"{api}/{path}", json.dumps(body).encode(), headers)) as answer:
            return json.load(answer)

    def in_prefect(self, kind: str, **filters: Any) -> list[dict[str, Any]]:
        """What Prefect has of a kind, e.g. "flow_runs", that passes filters, e.g. by `flow_run_of`.

        Other tests use the server meanwhile: without a filter by what is the test's own, the result
        has theirs, too.
        """
        return list(self.ask_prefect(f"{kind}/filter", {"limit": 200, **filters}))

    def flow_run_of(self, run: Answer | str) -> dict[str, Any]:
        """The flow run of a command that printed its page, or of this name, which no other has."""
        if isinstance(run, Answer):
            wanted = {"id": {"any_": [run.data["prefect_ui"].rpartition("/")[2]]}}
        else:
            wanted = {"name": {"any_": [run]}}
        [found] = self.in_prefect("flow_runs", flow_runs=wanted)
        return found

    def tasks_of(self, flow_run: Mapping[str, Any], at_least: int = 1) -> list[dict[str, Any]]:
        """The task runs of a flow run, once there are as many, and all have ended.

        The server records them after their run, a second of them at a time.
        """
        found: list[dict[str, Any]] = []

        def all_recorded() -> bool:
            wanted = {"id": {"any_": [flow_run["id"]]}}
            found[:] = self.in_prefect("task_runs", flow_runs=wanted)
            return len(found) >= at_least and all(run["end_time"] for run in found)

        await_that(all_recorded, f"{at_least} task runs of {flow_run['name']}")
        return found

    def objects(self, *prefixes: str) -> set[tuple[str, str]]:
        """Everything in S3 whose URI begins with one of these, with its ETag."""
        found = self.storage.objects("s3://demo/")
        return {(info.uri, info.etag) for info in found if info.uri.startswith(prefixes)}

    def frame(self, prefix: str) -> pl.DataFrame:
        """All rows below a prefix, in the order of their ids."""
        found = sorted(info.uri for info in self.storage.objects(prefix))
        frames = [pl.read_parquet(BytesIO(self.storage.get(uri).data)) for uri in found]
        return pl.concat(frames).sort("id")

    def await_some(self, prefix: str, process: AnyProcess) -> None:
        """Return when there is an object below a prefix; the process must run on meanwhile."""
        deadline = time.monotonic() + 90
        while not self.storage.objects(prefix):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"nothing below {prefix}"
            time.sleep(0.05)  # S3 has no event to wait for


def _is_flow(arguments: Sequence[str]) -> bool:
    return arguments[0] in FLOWS or tuple(arguments[:2]) in FLOWS


def sales(start: int, rows: int) -> pl.DataFrame:
    """Rows with the ids from `start` on."""
    ids = pl.int_range(start, start + rows, eager=True)
    return pl.DataFrame(
        {"id": ids, "price": (ids * 37 % 101).cast(pl.Float64), "shop": "s" + (ids % 5).cast(str)}
    )


def parquet(frame: pl.DataFrame, row_group: int = 250) -> bytes:
    """A frame as a Parquet file."""
    buffer = BytesIO()
    frame.write_parquet(buffer, row_group_size=row_group)
    return buffer.getvalue()


def fill(storage: Storage) -> None:
    """Good input, and one prefix for each sort of bad one."""
    each = ROWS // FILES
    for number in range(FILES):
        storage.put(f"s3://demo/sales/{number}.parquet", parquet(sales(number * each, each)))
    good = parquet(sales(0, 500))
    odd = parquet(sales(500, 500).with_columns(pl.col("price").cast(str), extra=pl.lit(1)))
    for name, other in {
        "no-parquet": b"id,price\n1,2\n" * 20,
        "empty": b"",
        "cut-off": good[: len(good) // 2],
        "differ": odd,
    }.items():
        storage.put(f"s3://demo/bad/{name}/good.parquet", good)
        storage.put(f"s3://demo/bad/{name}/other.parquet", other)
    storage.put("s3://demo/bad/csv/notes.csv", b"id,price\n1,2\n")
    storage.put("s3://demo/out/held/other.txt", b"mine")


def build(world: World) -> None:
    """Make the folder and start its stack."""
    root = world.root
    (root / "conf").mkdir(parents=True, exist_ok=True)
    (root / "conf" / "base.yaml").write_text(
        "transforms: {allow: [shop], allow_by_value: true}\n"
        "batches: {seconds: 0.5, max_chunks: 4}\n"
        # Several commands at once on few cores: the stack may take long to answer, and it will.
        "dask: {workers: 2, connect_timeout: 60}\n"
        "prefect: {connect_timeout: 60}\n"
    )
    for package in ("shop", "secret"):
        (root / package).mkdir(exist_ok=True)
    (root / "shop" / "__init__.py").touch()
    (root / "shop" / "transforms.py").write_text(TRANSFORMS)
    (root / "secret" / "__init__.py").write_text("open('imported', 'w').close()\n")
    _allow_others(world)
    _start_twice(world)
    fill(world.storage)


def _start_twice(world: World) -> None:
    """Give `up` twice at once; test_stack.py looks at what each has printed."""
    other = world.start("up", "--json")
    one = world.chunkmap("up", "--json")
    out, err = other.communicate(timeout=250)
    assert (one.code, other.returncode) == (0, 0), (one.err, err)
    (world.root / UPS).write_text(f"[{one.out},{out}]")


def _allow_others(world: World) -> None:
    """Credentials of limited rights beside the stack's own, which come first."""
    folder = StateFolder(world.root / ".chunkmap")
    folder.create()
    s3_settings(folder.root, 0)
    config = folder.root / "s3.json"
    identities = json.loads(config.read_text())["identities"]
    for (key, secret), actions in ((READER, ["Read", "List"]), (BLIND, ["Write"])):
        credentials = [{"accessKey": key, "secretKey": secret}]
        identities.append({"name": key, "credentials": credentials, "actions": actions})
    config.write_text(json.dumps({"identities": identities}))


def tear_down(world: World) -> None:
    """Kill the stack, which others see to be stopped: all tests wait for its end."""
    marker = StateFolder(world.root / ".chunkmap").marker()
    for process in processes.marked(marker):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    await_that(lambda: not processes.marked(marker), "the end of the stack")


@contextmanager
def shared(folder: Path) -> Iterator[World]:
    """One world for all test processes: the first one makes it, the last one ends it."""
    users = folder / "users"
    world = World(folder / "world", dict([PLANTED]))

    def counted(change: int, act: Callable[[World], object], when: Sequence[int]) -> None:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            count = (int(users.read_text()) if users.exists() else 0) + change
            if count in when:
                act(world)
            users.write_text(str(count))

    counted(1, build, when=[1])
    try:
        yield world
    finally:
        counted(-1, tear_down, when=[0])
