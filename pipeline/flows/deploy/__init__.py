"""Deploy an environment: compare what its files say with the server, and change what differs.

`resources` is what an environment consists of, and the comparison, without Prefect; `kinds` reads
and writes each kind on the server; `deploy` puts them together.
"""
