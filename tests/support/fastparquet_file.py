"""A file as fastparquet 2026.9 writes it, which the tests' environment does not have.

frame = pandas.DataFrame({
    "n": range(60),
    "text": [None if n % 7 == 0 else f"row {n % 5}" for n in range(60)],
    "f": [n / 2 for n in range(60)],
})
fastparquet.write(path, frame, row_group_offsets=[0, 25], stats=True, compression="GZIP")
"""

from __future__ import annotations

import base64
import zlib

_DATA = """
eNoLcAwyFGUQXcMsOolRR9QIyGQT5WBgkO8GEiDwP/TYVsYGBoEDB47fLeX7Jt/3TMOj2FP5kafT/SVnZmxOONllKr3tzY3i
Byc6jcXX3dnx+cHJ7vI/1Yzrwn/kXQPqBxo4h1l0Dnaz555dzcugwNPy0FnhRpPgqWR9IZ6+qxKtoQ4Fqzicrqr/+6LDcP24
Sdniac+YBTtdUpxC/lx60f7JtCqzII9x/o1FV85BLAA6fhMOxx9dzdtgwOB6kd1RQaBFwIlD8Y9jeWPZf00rp9RU1/UvDZdP
S9ES3XOWvU9nevaOp33VchVPOtPjKp72ltv9eNKdX/fjaX/9NKF7K5Z/hnrmDIvoNqBdbtjs2srYzCDAcMB/W8du7Tzb3/0u
B01jij93vEjvltDd++mWdP7ez/fY5Ws/3RSPr/18l9/+76fb8vV/P9/vDE4/F7uj5Omt3uhyQ1OG+5ustqgxgm07wCK6CLtt
c3sN+RgEeFx3JxRwujvc9U7auHObowqP1dULX/zzK36eZ2qYn82frrf1lrOKB8vMBRwyKZuOPGxf0eUW+uXxgduMtdzlbAqM
MB9twm6H7vHtvEyMDAccDps9meO4KEnPjf3v/NmTl19Nv3Thja3V8ybvdTuetd2+qH+7ctv3Nw9uXtw8OT39vN68WNvdlWXf
3zy8eXnz9Of75Scd3/Ec7B8mSR8PtuLkjNTcRFE2BlEW0QZGUSYJxjwGUR5VJgmWktSKElWgMi6oeBqDWIWkjqSNGoeMKIuk
KIMkUKkoi5iR2CVmsR2MkgxiHDYSHBIQtzJIQB3NwCDGwCApIwryGROQp3aAUUaUB6wbbAHYgEPMYodABhxgtJFgLcovVzCB
UAZiHCh6m5hlRLkgNqfBbL4B0tjEbAOzUMMBl9Viz7jEjBiA7r/FguIBN7FPLGJ3QMbcYgEaYw33gSR2H2xjQ/eBm9gzFrET
IBO2saH7gAtF7z92FB+ArQb74B87zAcNtnAfaDqg+eAUn5gbUECCrSAxLyWxWKKbtVopOT+nNDcvPjMvJbUitVjJSiG6Wikt
MzUnJT4vMTcVyM8rzcnRUVDKTS1JTEksSUSIoMrnleYWVMaXVBaAxJSKS4qUgIIQe+CiuZkVqSm6mXklqempRUq1sUAVEOux
2auUp4TPWog0qq1Ak81MsNgLEa/VUUC3AhQB+G2BqUC1KD8pKzW5BItNpXmZyfkpqdjsSsNvURqmLWk5+YnYPQSTgQRhUWpi
SX4RULxaKSczqSixqBKsJrG4pCCxqLA0FezQstSi4sz8PJCMkYGRmZ6lngHIlUrgiI9HiYZsoBhIXVFiXnqqEkZMF5ckFpUA
uQZgdmoBkGkIZuaDmGYGYEdBHYxkq7GeoZ4hxC9FJZklQFFkW2NrGSR0kZysW1BZkpGfpwA1QAHmZgWNpNLMnBQFA02GRhYG
hgBgfQcA16gOxQ==
"""


def fastparquet_file() -> bytes:
    """Return the file."""
    return zlib.decompress(base64.b64decode(_DATA))
