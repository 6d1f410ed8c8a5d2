"""Prefect: flows, tasks, deployments and automations. Only this package imports Prefect.

One file per flow; `executor.py` runs batches as task runs on Dask; `deployments.py` registers the
flows; `automations.py` resumes crashed backfills.
"""
