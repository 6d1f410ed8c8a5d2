"""A published output, or only its new commits, into a database.

Work left = version − ledger: the database itself records which commits it has, in the transaction
that brings their rows. So a load that was killed, whose reply was lost, or that two processes do at
once loads nothing twice and loses nothing. `plan.py` decides (no I/O), `batches.py` reads,
`destination.py` says what a database must offer, and `duckdb_file.py` and `postgresql.py`
offer it.
"""
