"""The workloads by name: what is mapped over what, and what must come out."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import polars as pl

from benchmarks import transforms
from benchmarks.datasets import Card, Scale, prefix_of
from benchmarks.digest import Digest, digest, read, total
from pipeline.storage import Storage

Kind = Literal["map", "plan", "tasks", "resume", "wait"]
"""What the clock runs for: S3 to S3; planning alone; very many chunks of nothing; a second run of
the same job; waiting."""

ALL = (
    "polars",
    "duckdb",
    "daft",
    "dask-dataframe",
    "dask-futures",
    "ray-data",
    "pyspark",
    "prefect-naive",
)


@dataclass(frozen=True, slots=True)
class Aim:
    """What a comparison is meant to reach."""

    peers: tuple[str, ...]
    ratio: float
    """Ours over theirs, at most."""

    def says(self) -> str:
        """The aim in words."""
        if self.ratio >= 1:
            return f"at most {self.ratio:g} times as long"
        return f"at least {1 / self.ratio:g} times as fast"


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload.

    Attributes:
        name: As the command line spells it.
        says: What it does, in one sentence.
        kind: What the clock runs for.
        dataset: Name of the dataset.
        transform: Function of benchmarks.transforms.
        params: Its keyword arguments; `{root}` and `{scale}` are filled in.
        peers: Who can do it.
        suite: `main` is run against every peer by `make bench`, `rest` against Polars only.
        chunks: Settings of chunking, as in a job file.
        aims: What is meant to be reached.
        limits: Most tasks for a peer whose cost for each would take hours.
        workers: Worker threads to run on one after the other, for a scaling curve.
        sizes: Numbers of tasks to run one after the other, by scale, for a curve of their cost.
    """

    name: str
    says: str
    kind: Kind
    dataset: str
    transform: str
    params: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    peers: tuple[str, ...] = ("polars",)
    suite: Literal["main", "rest"] = "rest"
    chunks: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    aims: tuple[Aim, ...] = ()
    limits: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    workers: tuple[int, ...] = ()
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_checked(self) -> bool:
        """Whether it writes rows that are held against the expected ones."""
        return self.kind in ("map", "resume", "wait")


_FAST = Aim(("polars", "duckdb", "daft"), 1.15)
_SLOW = Aim(("pyspark", "ray-data", "dask-dataframe"), 1 / 5)

WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            "row-map",
            "arithmetic on four columns of TPC-H lineitem, every row kept",
            "map",
            "lineitem",
            "row_map",
            peers=ALL,
            suite="main",
            aims=(_FAST, _SLOW),
        ),
        Workload(
            "few-rows",
            "a filter that keeps one line item in two thousand",
            "map",
            "lineitem",
            "few_rows",
            peers=ALL,
            suite="main",
        ),
        Workload(
            "strings",
            "five string functions over the comments of every line item",
            "map",
            "lineitem",
            "strings",
            peers=ALL,
            suite="main",
        ),
        Workload(
            "projection",
            "two columns of a hundred, ten of which are nested",
            "map",
            "wide",
            "narrow",
            peers=("polars", "duckdb"),
        ),
        Workload(
            "join",
            "each line item with its supplier, a small table",
            "map",
            "lineitem",
            "join_supplier",
            params={"suppliers": "{root}/datasets/supplier-{scale}/data/"},
            peers=("polars", "duckdb"),
        ),
        Workload(
            "daily",
            "three years of Hive partitions, one small file a day",
            "map",
            "daily",
            "daily_kinds",
            peers=("polars",),
        ),
        Workload(
            "skew",
            "events of which one row group is 50 times the others",
            "map",
            "events",
            "same",
            peers=("polars", "dask-futures"),
        ),
        Workload(
            "python",
            "a plain Python function over each row",
            "map",
            "events",
            "python_function",
            peers=("polars", "dask-futures", "ray-data"),
        ),
        Workload(
            "plan",
            "list thousands of files, read every footer, make a plan",
            "plan",
            "tiny",
            "same",
            peers=("dask-dataframe",),
            aims=(Aim(("dask-dataframe",), 1 / 8),),
        ),
        Workload(
            "ledger",
            "the cost of a chunk itself: ours are recorded as done without reading or writing "
            "them, while peers run as many tasks that do nothing and record nothing",
            "tasks",
            "row-groups",
            "same",
            peers=("dask-futures", "ray-data", "prefect-naive"),
            aims=(Aim(("dask-futures", "ray-data", "prefect-naive"), 1.0),),
            limits={"prefect-naive": 200},
            sizes=MappingProxyType(
                {"s": (100, 1_000, 10_000), "m": (1_000, 10_000, 100_000), "l": (100_000,)}
            ),
        ),
        Workload(
            "chunks",
            "as many chunks as there are row groups, read and mapped, no row of which is kept",
            "map",
            "row-groups",
            "nothing",
            peers=(),
            chunks={"target": 1},
        ),
        Workload(
            "resume",
            "give a complete run's command again",
            "resume",
            "row-groups",
            "nothing",
            peers=(),
            chunks={"target": 1},
        ),
        Workload(
            "resume-half",
            "go on with a run half of whose chunks are done",
            "resume",
            "row-groups",
            "half",
            params={"marker": "{root}/markers/half-{scale}"},
            peers=(),
            chunks={"target": 1},
        ),
        Workload(
            "wait",
            "wait a tenth of a second for each of 1,000 chunks, on 1 to 32 worker threads",
            "wait",
            "row-groups",
            "wait",
            params={"seconds": 0.1},
            peers=(),
            chunks={"target": 1},
            workers=(1, 4, 8, 16, 32),
        ),
    )
}


def bound_params(workload: Workload, root: str, scale: Scale) -> dict[str, Any]:
    """The parameters of a workload's transform on one dataset."""
    return {
        name: value.format(root=root.rstrip("/"), scale=scale) if isinstance(value, str) else value
        for name, value in workload.params.items()
    }


def needs(workload: Workload) -> tuple[str, ...]:
    """The datasets that it reads."""
    return (workload.dataset, "supplier") if workload.name == "join" else (workload.dataset,)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a workload must write."""

    schema: Mapping[str, pl.DataType]
    digest: Digest


def expect(storage: Storage, root: str, workload: Workload, card: Card) -> Expected:
    """What must come out: the transform over one file after the other, without any engine.

    It is kept in S3, under the hash of what it depends on.
    """
    params = bound_params(workload, root, _scale(card))
    # Chunks that fail or wait on purpose come out as they went in.
    name = "same" if workload.kind in ("resume", "wait") and workload.name != "resume" else ""
    function = getattr(transforms, name or workload.transform)
    schema = schema_of(storage, workload, card, function, {} if name else params)
    said = json.dumps([inspect.getsource(function), params, card.model_dump(), str(schema)])
    key = hashlib.sha256(said.encode()).hexdigest()[:16]
    uri = f"{root.rstrip('/')}/expected/{workload.name}-{card.scale}-{key}.json"
    stored = storage.get_if_there(uri)
    if stored is not None:
        return Expected(schema, Digest(**json.loads(bytes(stored.data))))
    whole = total(
        digest(
            function(read(storage, info.uri).lazy(), **({} if name else params)).collect(), schema
        )
        for info in storage.objects(card.uri)
    )
    body = {"rows": whole.rows, "exact": whole.exact, "sums": dict(whole.sums)}
    storage.put(uri, json.dumps(body).encode())
    return Expected(schema, whole)


def schema_of(
    storage: Storage, workload: Workload, card: Card, function: Any, params: Mapping[str, Any]
) -> dict[str, pl.DataType]:
    """The schema of a workload's result, from its first file."""
    first = min(info.uri for info in storage.objects(card.uri))
    return dict(function(read(storage, first).head(0).lazy(), **params).collect_schema())


def input_of(root: str, workload: Workload, scale: Scale) -> str:
    """The URI of a workload's input."""
    return prefix_of(root, workload.dataset, scale) + "data/"


def _scale(card: Card) -> Scale:
    scale: Any = card.scale
    return scale  # type: ignore[no-any-return]
