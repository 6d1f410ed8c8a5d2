"""Ingest: pages of an HTTP API, files, or rows become Parquet, published exactly once.

A page that was fetched is stored before the next is asked for, so an ingest that was stopped goes
on after it. When all pages are stored, the schema and the files are planned from them, the files
are staged, and one commit publishes them. `run.py` does this in order; `paging.py` knows which
request follows a page, `client.py` makes requests, `store.py` keeps pages and plans next to the
output. Rows of a database or a function are read once into parts (`readings.py`).
"""

from pipeline.ingest.run import IngestOptions, IngestSummary, ingest

__all__ = ["IngestOptions", "IngestSummary", "ingest"]
