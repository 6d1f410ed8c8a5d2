"""Datasets, workloads and timings of chunkmap, and of what it is compared with."""
