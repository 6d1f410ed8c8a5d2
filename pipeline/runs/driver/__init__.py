"""The driver of a run.

`plan.py` prepares a run, `map_stage.py` schedules batches in rounds until none is left,
`reduce_stage.py` finds partial results, `publish.py` commits, `report.py` reports; `run.py` calls
them in this order. `executor.py` is the interface to a cluster, `orchestrator.py` to Prefect.
"""
