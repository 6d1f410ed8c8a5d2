"""Others who do the same work: one script each, in an environment of its own.

    <environment>/bin/python -m benchmarks.peers.duckdb_sql spec.json

prints one JSON line: seconds to start up, then for each time the work was done its seconds and
rows. Each script is written as the documentation of its project does it. What they wrote is not
not taken from them but read again by the suite (benchmarks.suite.digest).
"""
