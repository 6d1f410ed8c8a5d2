"""Checks of a result: of its rows, and of the whole before it is published.

`figures.py` measures a frame, `evaluate.py` judges figures, `keys.py` and `sql.py` look at the
columns that were kept of all chunks. Knows frames and checks, not runs.
"""
