"""Read Parquet files with PySpark, and store the rows; run by the interpreter that has PySpark.

    python read_with_pyspark.py CASES.json

CASES.json lists what to read: `folder`, which the partition columns are below; `files` in it, or
none for all; `schema`, as Spark declares it; and `target`, the folder for the rows.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from pyspark.sql import SparkSession

OPTIONS = {
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.sql.session.timeZone": "UTC",
    # Folders are listed here, and not by a job of Spark's.
    "spark.sql.sources.parallelPartitionDiscovery.threshold": "100000",
    # Dates before 1582 are those of the calendar that Parquet demands, and not of Spark 2.
    "spark.sql.parquet.datetimeRebaseModeInRead": "CORRECTED",
    "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
}


def main(cases: Path) -> None:
    """Read all cases in one session."""
    builder = SparkSession.builder.master("local[1]")
    for name, value in OPTIONS.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    for case in json.loads(cases.read_text("utf-8")):
        # Spark takes a path for a glob.
        paths = [re.sub(r"([\\*?\[\]{}])", r"\\\1", path) for path in case["files"]]
        reader = session.read.schema(case["schema"]).option("basePath", case["folder"])
        frame = reader.parquet(*paths or [case["folder"]])
        frame.coalesce(1).write.parquet(case["target"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
