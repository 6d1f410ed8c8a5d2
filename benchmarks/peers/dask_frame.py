"""Dask DataFrame: read_parquet, pandas expressions, to_parquet on a local cluster."""

from __future__ import annotations

from typing import Any

import dask.dataframe as dd
from dask.dataframe.dask_expr.io import parquet
from distributed import Client, LocalCluster

from benchmarks.peers.protocol import Spec, main, s3


def start(spec: Spec) -> Client:
    """One worker process a core, as LocalCluster's own documentation advises for pandas."""
    cluster = LocalCluster(
        n_workers=spec.cores, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    )
    client = Client(cluster)
    client.wait_for_workers(spec.cores)
    return client


def row_map(frame: Any) -> Any:
    """Revenue and charge of each line."""
    net = frame.l_extendedprice * (1 - frame.l_discount)
    kept = frame[["l_orderkey", "l_linenumber", "l_suppkey", "l_shipdate"]]
    return kept.assign(revenue=net, charge=net * (1 + frame.l_tax), currency="EUR")


def by_month(frame: Any) -> Any:
    """The same, with the month."""
    mapped = row_map(frame)
    return mapped.assign(month=dd.to_datetime(mapped.l_shipdate).dt.strftime("%Y-%m"))


def with_measures(frame: Any) -> Any:
    """All columns, and three more."""
    net = frame.l_extendedprice * (1 - frame.l_discount)
    month = dd.to_datetime(frame.l_shipdate).dt.strftime("%Y-%m")
    return frame.assign(revenue=net, charge=net * (1 + frame.l_tax), month=month)


def few_rows(frame: Any) -> Any:
    """A filter that keeps little."""
    kept = frame[
        (frame.l_quantity == 1) & (frame.l_discount >= 0.09) & (frame.l_shipmode == "RAIL")
    ]
    return kept[["l_orderkey", "l_linenumber", "l_shipdate", "l_extendedprice", "l_comment"]]


def strings(frame: Any) -> Any:
    """Five functions of strings."""
    comment = frame.l_comment
    return frame[["l_orderkey", "l_linenumber"]].assign(
        loud=comment.str.upper(),
        letters=comment.str.len(),
        special=comment.str.contains("special", regex=False),
        masked=comment.str.replace("express", "*******", regex=False),
        mode=frame.l_shipmode + "/" + frame.l_shipinstruct,
    )


QUERIES = {
    "row-map": row_map,
    "partition-by": by_month,
    "add-columns": with_measures,
    "few-rows": few_rows,
    "strings": strings,
}


def write(client: Client, spec: Spec, output: str) -> None:
    """Map and write one file a partition, or one for each Hive partition of it."""
    frame = dd.read_parquet(spec.input, storage_options=s3().fsspec())
    mapped = QUERIES[spec.workload](frame)
    mapped.to_parquet(
        output,
        storage_options=s3().fsspec(),
        compression="zstd",
        write_index=False,
        partition_on=list(spec.keys) or None,
    )


def plan(client: Client, spec: Spec, output: str) -> dict[str, int]:
    """What corresponds to a plan: a list of partitions of a size, from every file's footer."""
    # A second plan in one process would come from its memory, and read nothing but ETags.
    parquet._cached_plan.clear()
    frame = dd.read_parquet(
        spec.input,
        storage_options=s3().fsspec(),
        blocksize="128MiB",
        aggregate_files=True,
        split_row_groups="adaptive",
    )
    return {"parts": int(frame.npartitions)}


if __name__ == "__main__":
    main(start, {**dict.fromkeys(QUERIES, write), "plan": plan}, Client.close, ("dask", "pandas"))
