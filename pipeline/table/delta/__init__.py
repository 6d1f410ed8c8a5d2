"""An output as a Delta table: its files, committed to the Delta log in the output.

A commit of the output is first published as usual, and then becomes one Delta transaction with the
number of its manifest (`txn`). Whoever meets an output whose manifest is newer than that number
commits what is missing. `types.py` and `actions.py` are pure, `statistics.py` reads footers, and
`log.py` alone imports `deltalake`.
"""
