"""The workloads by name: what is mapped over what, and what must come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Kind = Literal["map", "plan", "tasks", "resume", "wait", "publish", "backfill"]
"""What the clock runs for: S3 to S3; planning alone; very many chunks of nothing; a second run of
the same job; waiting; publishing alone."""

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
class RatioAim:
    """What a comparison is meant to reach."""

    peers: tuple[str, ...]
    ratio: float
    """Ours over theirs, at most."""
    scales: str = "sml"
    """Scales of the datasets for which it is an aim."""

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
        reduce: Functions of benchmarks.transforms that combine and finalize, if it reduces.
        output: Settings of the output, as in a job file.
        own_transform: Function that chunkmap maps instead, where its output keeps columns.
        keys: Columns whose values are the output's Hive partitions.
        rows_per_task: Rows of one chunk, where only as many chunks are mapped as there are tasks:
            those with the lowest `id`.
        tasks_per_worker: So many tasks for each worker thread of a scaling curve.
        iterations: Times that each process does the work, unless asked otherwise. Beside a peer
            there are four: with fewer than three warm ones nothing is called a difference.
        efficiency: What the last point of a scaling curve is meant to reach, as a share.
        counted: Its requests are counted, if it is not of `main`, without `--full` too.
        ci: Whether it is in the small set whose ratios are compared with a baseline at each change.
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
    aims: tuple[RatioAim, ...] = ()
    limits: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    workers: tuple[int, ...] = ()
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))
    reduce: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    keys: tuple[str, ...] = ()
    output: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    own_transform: str = ""
    rows_per_task: int = 0
    tasks_per_worker: int = 0
    iterations: int = 4
    efficiency: float | None = None
    counted: bool = False
    ci: bool = False

    @property
    def suites(self) -> frozenset[str]:
        """The names of the suites that it is in, its own among them."""
        return frozenset({self.name, self.suite, "all"} | ({"ci"} if self.ci else set()))

    @property
    def is_checked(self) -> bool:
        """Whether it writes rows that are compared with the expected ones."""
        return self.kind in ("map", "resume", "wait", "publish", "backfill")


ONE_PROCESS = ("polars", "duckdb", "daft")
DISTRIBUTED = ("pyspark", "ray-data", "dask-dataframe")

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
            aims=(
                RatioAim(ONE_PROCESS, 0.95, "m"),
                RatioAim(ONE_PROCESS, 0.90, "l"),
                RatioAim(DISTRIBUTED, 0.40, "ml"),
            ),
        ),
        Workload(
            "partition-by",
            "the same, into the 84 partitions of a computed month",
            "map",
            "lineitem",
            "by_month",
            peers=("polars", "duckdb", "daft", *DISTRIBUTED),
            keys=("month",),
            output=MappingProxyType({"partition_by": ["month"]}),
            aims=(RatioAim(DISTRIBUTED, 1.0, "sm"),),
        ),
        Workload(
            "add-columns",
            "three computed columns next to all sixteen, which stay as they are",
            "map",
            "lineitem",
            "with_measures",
            own_transform="measures",
            peers=("polars", "duckdb", "daft", *DISTRIBUTED),
            output=MappingProxyType({"keep": "all"}),
            aims=(RatioAim((*ONE_PROCESS, *DISTRIBUTED), 0.25, "sm"),),
            counted=True,
        ),
        Workload(
            "rename-column",
            "one of sixteen columns under another name",
            "map",
            "lineitem",
            "renamed",
            own_transform="no_columns",
            output=MappingProxyType({"keep": "all", "rename": {"l_comment": "comment"}}),
            aims=(RatioAim(("polars",), 0.05, "sm"),),
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
        ),
        Workload(
            "projection",
            "two columns of a hundred, ten of which are nested",
            "map",
            "wide",
            "narrow",
            peers=("polars", "duckdb"),
            counted=True,
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
            "stations",
            "map and reduce: least, mean and greatest measure of each station (1TRC)",
            "map",
            "measurements",
            "extremes",
            peers=("polars", "duckdb"),
            reduce=MappingProxyType({"combine": "all_extremes", "finalize": "mean_extremes"}),
            aims=(RatioAim(("polars",), 1.30, "m"), RatioAim(("polars",), 1.10, "l")),
            counted=True,
            ci=True,
        ),
        Workload(
            "daily",
            "three years of Hive partitions, one small file a day, into the same partitions",
            "map",
            "daily",
            "daily_kinds",
            peers=("polars", "duckdb"),
            keys=("day",),
            aims=(RatioAim(("polars",), 2.0, "m"),),
            counted=True,
            ci=True,
        ),
        Workload(
            "tpch-q1",
            "map and reduce: TPC-H query 1, eight sums and averages of four groups",
            "map",
            "lineitem",
            "pricing",
            peers=("polars", "duckdb"),
            reduce=MappingProxyType({"combine": "all_pricing", "finalize": "report_pricing"}),
        ),
        Workload(
            "tpch-q6",
            "map and reduce: TPC-H query 6, one sum over a fiftieth of the rows",
            "map",
            "lineitem",
            "forecast",
            peers=("polars", "duckdb"),
            reduce=MappingProxyType({"combine": "all_forecast"}),
        ),
        Workload(
            "skew",
            "events of which one row group is 50 times the others",
            "map",
            "events",
            "same",
            peers=("polars", "dask-futures"),
            ci=True,
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
            "fixed",
            "a run of one tiny chunk, which is the fixed cost of a run",
            "map",
            "one",
            "same",
            counted=True,
            iterations=11,
            ci=True,
        ),
        Workload(
            "plan",
            "list thousands of files, read every footer, make a plan",
            "plan",
            "small",
            "same",
            peers=("dask-dataframe",),
            aims=(RatioAim(("dask-dataframe",), 1 / 8),),
        ),
        Workload(
            "plan-again",
            "the same again, when nothing has changed",
            "plan",
            "small",
            "same",
            peers=(),
        ),
        Workload(
            "small-files",
            "thousands of files of 4 KiB, each a chunk that is read, staged and published",
            "map",
            "small",
            "same",
            peers=(),
            chunks={"per_file": True},
            sizes=MappingProxyType({"s": (2_000,), "m": (20_000,), "l": (100_000,)}),
            iterations=2,
        ),
        Workload(
            "ledger",
            "the cost of a chunk itself: ours are recorded as done without reading or writing "
            "them, while peers run as many tasks that do nothing and record nothing",
            "tasks",
            "row-groups",
            "same",
            peers=("dask-futures", "ray-data", "prefect-naive"),
            aims=(RatioAim(("dask-futures", "ray-data", "prefect-naive"), 1.0),),
            suite="main",
            limits={"prefect-naive": 100},
            sizes=MappingProxyType(
                {"s": (1_000, 4_000), "m": (1_000, 10_000, 100_000), "l": (100_000,)}
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
            iterations=2,
        ),
        Workload(
            "resume",
            "give a complete run's command again",
            "resume",
            "row-groups",
            "nothing",
            peers=(),
            chunks={"target": 1},
            iterations=2,
        ),
        Workload(
            "resume-half",
            "resume a run of which half of the chunks are done",
            "resume",
            "row-groups",
            "half",
            params={"marker": "{root}/markers/half-{scale}"},
            peers=(),
            chunks={"target": 1},
            iterations=2,
        ),
        Workload(
            "publish",
            "make staged files visible, one of four rows for each chunk",
            "publish",
            "row-groups",
            "same",
            peers=(),
            chunks={"target": 1},
            sizes=MappingProxyType({"s": (500,), "m": (2_000,), "l": (10_000,)}),
            rows_per_task=4,
            counted=True,
            iterations=2,
        ),
        Workload(
            "backfill",
            "a backfill of three years, day by day: each day a window with a commit of its own",
            "backfill",
            "daily",
            "daily_kinds",
            keys=("day",),
            iterations=2,
        ),
        Workload(
            "windows",
            "a backfill of very many windows of one tiny file each",
            "backfill",
            "windows",
            "same",
            peers=(),
            keys=("day",),
            sizes=MappingProxyType({"s": (500, 2_000), "m": (1_096, 10_000), "l": (10_000,)}),
            rows_per_task=10,
            iterations=2,
        ),
        Workload(
            "wait",
            "wait half a second for each chunk, 24 chunks for each of 1 to 32 worker threads",
            "wait",
            "row-groups",
            "wait",
            params={"seconds": 0.5},
            peers=(),
            chunks={"target": 1},
            workers=(1, 8, 32),
            rows_per_task=4,
            tasks_per_worker=24,
            iterations=2,
            efficiency=0.92,
        ),
    )
}


def bound_params(workload: Workload, root: str, scale: str) -> dict[str, Any]:
    """The parameters of a workload's transform on one dataset."""
    return {
        name: value.format(root=root.rstrip("/"), scale=scale) if isinstance(value, str) else value
        for name, value in workload.params.items()
    }


def needs(workload: Workload) -> tuple[str, ...]:
    """The datasets that it reads."""
    return (workload.dataset, "supplier") if workload.name == "join" else (workload.dataset,)
