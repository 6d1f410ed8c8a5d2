"""The processes of a cluster: `python -m pipeline.cluster.scheduler` and `….worker`.

Both read the settings (`CHUNKMAP_DASK__…`) and Dask's own variables (`DASK_…`), and serve
`/health` and `/metrics` at the port of Dask's pages.
"""
