"""DuckDB: COPY (SELECT … FROM read_parquet(…)) TO …, with httpfs and a secret, as its docs do it.

httpfs is installed from PyPI (duckdb-extension-httpfs, the same binary) so that a lock pins it.
"""

from __future__ import annotations

import sys

import duckdb
from duckdb_extensions import import_extension

from benchmarks.peers.protocol import Spec, main, own_cpu, s3

ROW_MAP = """
        SELECT l_orderkey, l_linenumber, l_suppkey, l_shipdate,
               l_extendedprice * (1 - l_discount) AS revenue,
               l_extendedprice * (1 - l_discount) * (1 + l_tax) AS charge,
               'EUR' AS currency"""
QUERIES = {
    "row-map": ROW_MAP + " FROM {input}",
    "partition-by": ROW_MAP + ", strftime(l_shipdate, '%Y-%m') AS month FROM {input}",
    "add-columns": """
        SELECT *, l_extendedprice * (1 - l_discount) AS revenue,
               l_extendedprice * (1 - l_discount) * (1 + l_tax) AS charge,
               strftime(l_shipdate, '%Y-%m') AS month
        FROM {input}""",
    "few-rows": """
        SELECT l_orderkey, l_linenumber, l_shipdate, l_extendedprice, l_comment
        FROM {input}
        WHERE l_quantity = 1 AND l_discount >= 0.09 AND l_shipmode = 'RAIL'""",
    "strings": """
        SELECT l_orderkey, l_linenumber, upper(l_comment) AS loud, length(l_comment) AS letters,
               contains(l_comment, 'special') AS special,
               replace(l_comment, 'express', '*******') AS masked,
               l_shipmode || '/' || l_shipinstruct AS mode
        FROM {input}""",
    "projection": "SELECT id, f00 + f88 AS total FROM {input}",
    "join": """
        SELECT l_orderkey, l_linenumber, l_suppkey, l_quantity, s_name, s_nationkey
        FROM {input} LEFT JOIN read_parquet('{suppliers}*.parquet') ON l_suppkey = s_suppkey""",
    "daily": 'SELECT day, "user", upper(kind) AS kind, value AS cents FROM {input}',
    "stations": """
        SELECT station, min(measure) AS least, max(measure) AS greatest, count(*) AS rows,
               sum(measure) / count(*) AS mean
        FROM {input} GROUP BY station ORDER BY station""",
    "tpch-q1": """
        SELECT l_returnflag, l_linestatus, sum(l_quantity) AS sum_qty,
               sum(l_extendedprice) AS sum_base_price,
               sum(l_extendedprice * (1 - l_discount)) AS sum_disc_price,
               sum(l_extendedprice * (1 - l_discount) * (1 + l_tax)) AS sum_charge,
               avg(l_quantity) AS avg_qty, avg(l_extendedprice) AS avg_price,
               avg(l_discount) AS avg_disc, count(*) AS count_order
        FROM {input} WHERE l_shipdate <= DATE '1998-09-02'
        GROUP BY ALL ORDER BY l_returnflag, l_linestatus""",
    "tpch-q6": """
        SELECT sum(l_extendedprice * l_discount) AS revenue
        FROM {input}
        WHERE l_shipdate >= DATE '1994-01-01' AND l_shipdate < DATE '1995-01-01'
          AND l_discount BETWEEN 0.05::DOUBLE AND 0.07::DOUBLE AND l_quantity < 24""",
}


def start(spec: Spec) -> duckdb.DuckDBPyConnection:
    """A connection that can reach S3."""
    where = s3()
    # Not the home folder's, which other environments share.
    connection = duckdb.connect(config={"extension_directory": f"{sys.prefix}/duckdb"})
    import_extension("httpfs", con=connection)
    connection.load_extension("httpfs")
    connection.execute(f"SET threads = {spec.cores}")
    connection.execute("SET preserve_insertion_order = false")
    connection.execute(
        f"""CREATE SECRET (TYPE s3, KEY_ID '{where.key}', SECRET '{where.secret}',
            REGION '{where.region}', ENDPOINT '{where.host}', URL_STYLE 'path',
            USE_SSL {str(where.endpoint.startswith("https")).lower()})"""
    )
    return connection


def write(connection: duckdb.DuckDBPyConnection, spec: Spec, output: str) -> int:
    """Copy the query's result into one file, or into Hive partitions; returns its rows."""
    source = f"read_parquet('{spec.glob()}')"
    query = QUERIES[spec.workload].format(input=source, **spec.params)
    target = f"'{output}result.parquet' (FORMAT parquet, COMPRESSION zstd)"
    if spec.keys:
        keys = ", ".join(spec.keys)
        target = f"'{output}' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY ({keys}))"
    copied = connection.execute(f"COPY ({query}) TO {target}").fetchone()
    return int(copied[0]) if copied else 0


if __name__ == "__main__":
    main(start, {"map": write}, packages=("duckdb", "duckdb-extension-httpfs"), cpu=own_cpu)
