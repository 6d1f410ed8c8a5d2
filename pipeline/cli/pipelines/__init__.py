"""`chunkmap pipeline`."""
