"""An output as a versioned table, in the sense of Iceberg or Delta.

HEAD.json points to a manifest; a manifest lists commits; a commit lists files. `publish.py` is the
protocol (freeze, claim, complete, write, move), `log.py` and `commits.py` read and write the state,
`replay.py` decides which files are live, `retention.py` keeps replaced versions. Knows files, not
runs.
"""
