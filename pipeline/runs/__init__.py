"""A run of a job, from plan to publish.

Workers append completions to the ledger; the driver reads them, plans what is left, and commits.
Inside, `ledger` < `worker` < `driver` < `admin` < `backfill`: each imports from those before it.
"""
