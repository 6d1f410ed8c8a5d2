"""Treat an output as a versioned table, in the sense of Iceberg or Delta.

HEAD.json points to a manifest; a manifest lists commits; a commit lists files. `publish.py` is the
protocol (freeze, claim, complete, write, move), `log.py` reads and writes the table log,
`replay.py` decides which files are live, `commits.py` holds the commit records, `retention.py` keeps replaced versions. The package knows
files, not runs.
"""
