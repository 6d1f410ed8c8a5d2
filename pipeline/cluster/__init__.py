"""Dask: its client, the task runner of flows, the processes of a cluster. The only door to it.

`task_runner.py` and `futures.py` are what flows use; `serve.py`, `scheduler.py` and `worker.py` are
the processes (`python -m pipeline.cluster.scheduler` and `….worker`), which read the settings
(`CHUNKMAP_DASK__…`) and Dask's own variables (`DASK_…`), and serve `/health` and `/metrics` at the
port of Dask's pages. `graceful_worker.py` hands batches back on shutdown. `local/` starts S3,
Prefect and Dask on this machine.
"""
