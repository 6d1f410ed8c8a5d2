"""Example transforms: each takes a LazyFrame and keyword parameters and returns a LazyFrame.

A transform sees one chunk at a time, on any worker, in any order. Write it so that cutting the
chunk in two would not change the result: expressions over a row, filters, joins with small tables.
`chunkmap check JOB` runs it both ways and compares.
"""
