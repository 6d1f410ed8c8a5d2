"""Prefect: flows, tasks, deployments and automations. The only door to Prefect.

One file a flow; `executor.py` runs batches as task runs on Dask; `deployments.py` registers the
flows, `automations.py` resumes what crashed.
"""
