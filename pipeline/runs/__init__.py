"""A run of a job: its ledger, its workers, its driver."""
