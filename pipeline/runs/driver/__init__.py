"""What happens in the driver of a run.

`plan.py` prepares a run, `map_stage.py` schedules batches in rounds until none is left,
`reduce_stage.py` combines, `publish.py` commits, `report.py` reports; `run.py` does all of it.
`executor.py` says what a driver needs of a cluster, `orchestrator.py` what it offers to Prefect.
"""
