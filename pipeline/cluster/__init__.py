"""Dask: its client, the task runner of flows, the processes of a cluster.

Only this package imports Dask. Flows use `task_runner.py` and `futures.py`; `serve.py`,
`scheduler.py` and `worker.py` are the processes (`python -P -m pipeline.cluster.scheduler` and
`….worker`), which read the settings (`CHUNKMAP_DASK__…`) and Dask's own variables (`DASK_…`), and
serve `/health` and `/metrics` at the port of the dashboard. `graceful_worker.py` hands batches back
on shutdown. `local/` starts S3, Prefect and Dask on this machine.
"""
