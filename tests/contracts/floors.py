"""Which floor each module stands on. A module imports from lower floors only.

A package that is named as a whole (`pipeline.storage`) is one room: its own files may import each
other. A new module needs a line here: the lowest floor that lets it import what it needs.
"""

FLOORS: dict[str, int] = {
    "partitioning.thrift": -3,
    "partitioning.parquet_footer": -2,
    "partitioning.dtypes": -1,
    "partitioning.pages": -1,
    "partitioning.page_index": -1,
    "partitioning.page_rows": -1,
    "partitioning.untrusted_statistics": -1,
    "partitioning.errors": 0,
    "partitioning.globs": 0,
    "partitioning.hive_paths": 0,
    "partitioning.filters": 1,
    "partitioning.schemas": 1,
    "partitioning.table_file": 1,
    "partitioning.calendar": 0,
    "partitioning.windows": 1,
    "partitioning.plan_subset": 1,
    "partitioning.model": 2,
    "partitioning.request": 2,
    "partitioning.integrity": 3,
    "partitioning.sizes": 2,
    "partitioning.hive": 3,
    "partitioning.reader": 3,
    "partitioning.fsspec_reader": 4,
    "partitioning.table_formats": 4,
    "partitioning.listing": 5,
    "partitioning.packing": 4,
    "partitioning.pruning": 4,
    "partitioning.footers": 5,
    "partitioning.window_inputs": 6,
    "partitioning.snapshot": 6,
    "partitioning.explain": 7,
    "partitioning.plan_builder": 7,
    "partitioning.planner": 8,
    "pipeline.errors": 9,
    "pipeline.private": 9,
    "pipeline.runs.worker.page_checksums": 10,
    "pipeline.uris": 10,
    "pipeline.config": 10,
    "pipeline.printable": 10,
    "pipeline.cluster.certificates": 11,
    "pipeline.cluster.local.seaweedfs": 12,
    "pipeline.processes": 11,
    "pipeline.liveness": 11,
    "pipeline.concurrency": 11,
    "pipeline.storage.outages": 11,
    "pipeline.logs": 11,
    "pipeline.metrics": 11,
    "pipeline.runs.ledger.records": 11,
    "pipeline.runs.worker.sparse_file": 11,
    "pipeline.runs.worker.decoding": 11,
    "pipeline.runs.worker.page_parts": 12,
    "pipeline.runs.transforms.user_code": 12,
    "pipeline.storage.documents": 10,
    "pipeline.storage.table_versions": 10,
    "pipeline.table.columns": 10,
    "pipeline.storage.tokens": 10,
    "pipeline.config.units": 11,
    "pipeline.config.yaml_file": 11,
    "pipeline.config.layers": 12,
    "pipeline.config.sections": 12,
    "pipeline.config.job": 13,
    "pipeline.config.settings": 13,
    "pipeline.runs.driver.overlap": 14,
    "pipeline.runs": 11,
    "pipeline.runs.transforms": 11,
    "pipeline.runs.driver.batching": 14,
    "pipeline.storage": 14,
    "pipeline.runs.transforms.loading": 14,
    "pipeline.runs.ledger": 12,
    "pipeline.runs.ledger.segments": 13,
    "pipeline.runs.worker.key_columns": 14,
    "pipeline.runs.ledger.completion_log": 14,
    "pipeline.runs.ledger.find": 16,
    "pipeline.runs.ledger.ledger": 15,
    "pipeline.runs.worker.chunk_source": 15,
    "pipeline.report": 15,
    "pipeline.table.manifest": 14,
    "pipeline.table.replay": 16,
    "pipeline.table": 10,
    "pipeline.table.keys": 11,
    "pipeline.table.errors": 15,
    "pipeline.table.head": 16,
    "pipeline.table.retention": 18,
    "pipeline.table.claims": 19,
    "pipeline.table.schemas": 19,
    "pipeline.table.repair": 21,
    "pipeline.table.log": 17,
    "pipeline.runs.driver.appending": 18,
    "pipeline.runs.worker.chunk": 16,
    "pipeline.runs.worker.reduce": 17,
    "pipeline.runs.worker.batch": 18,
    "pipeline.table.publish": 20,
    "pipeline.runs.driver.former_folders": 18,
    "pipeline.runs.driver.executor": 21,
    "pipeline.runs.driver.plan": 21,
    "pipeline.runs.driver.map_stage": 22,
    "pipeline.runs.driver.dry_run": 22,
    "pipeline.runs.driver.heartbeat": 23,
    "pipeline.runs.driver.publish_windows": 24,
    "pipeline.cluster": 22,
    "pipeline.runs.driver.following": 24,
    "pipeline.runs.admin.vacuum": 21,
    "pipeline.table.scan": 21,
    "pipeline.runs.driver.estimate": 21,
    "pipeline.runs.driver.run": 25,
    "pipeline.runs.backfill": 26,
    "pipeline.runs.admin.status": 26,
    "pipeline.flows": 27,
    "pipeline.cluster.local": 28,
    "pipeline.flows.doctor": 28,
    "pipeline.cluster.scaling": 28,
    "pipeline.cluster": 28,
    "pipeline.cli": 29,
}

# Packages of a whole distribution that only one room may import, and that room.
DOORS: dict[str, tuple[str, ...]] = {
    "dask": ("pipeline.cluster",),
    "distributed": ("pipeline.cluster",),
    "prefect_dask": ("pipeline.cluster",),
    "prefect": ("pipeline.flows",),
    "aiobotocore": ("pipeline.storage",),
    "boto3": ("pipeline.storage",),
    "botocore": ("pipeline.storage",),
    "fsspec": ("pipeline.storage", "partitioning.fsspec_reader"),
    "obstore": ("pipeline.storage",),
    "s3fs": ("pipeline.storage",),
}

# A bare package only re-exports, for those outside it: its own modules may not import it.
UNORDERED = frozenset({"partitioning", "pipeline"})


def room_of(module: str) -> str | None:
    """The longest named prefix of a module: `pipeline.storage.s3_objects` -> `pipeline.storage`."""
    parts = module.split(".")
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in candidates if name in FLOORS), None)


def broken_rules(module: str, target: str) -> list[str]:
    """What is wrong with `module` importing `target`: nothing, or a sentence for each rule."""
    top = target.partition(".")[0]
    room, other = room_of(module), room_of(target)
    problems = []
    if module.startswith("partitioning") and top == "pipeline":
        problems.append(f"{module} imports {target}: partitioning knows only Parquet and listings")
    if top in DOORS and room not in DOORS[top]:
        problems.append(f"{module} imports {target}: only {', '.join(DOORS[top])} may")
    if target in UNORDERED and module.startswith(f"{target}."):
        problems.append(f"{module} imports its own package {target}: import the module itself")
    if room and other and room != other and FLOORS[other] >= FLOORS[room]:
        problems.append(
            f"{module} (floor {FLOORS[room]}) imports {target} (floor {FLOORS[other]}): "
            "imports go down only"
        )
    return problems
