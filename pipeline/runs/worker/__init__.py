"""Everything that runs on a worker.

`batch.py` maps the chunks of a batch with read-ahead and staging; `chunk.py` reads, transforms,
encodes and stages one chunk; `reduce.py` combines partial results. A worker reads the input, stages
outputs and appends to the ledger; nothing else.
"""
