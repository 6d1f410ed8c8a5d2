"""Host runs and backfills on this machine, without services: no Prefect, no Dask.

`launch.py` drives; `workers.py` keeps worker processes, whose side is `process.py`; `executor.py`
and `orchestrator.py` are what the drivers of `runs` need.
"""
