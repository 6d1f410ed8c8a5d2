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
    "partitioning.writers": -1,
    "partitioning.errors": 0,
    "partitioning.globs": 0,
    "partitioning.hivepaths": 0,
    "partitioning.filters": 1,
    "partitioning.schemas": 1,
    "partitioning.tablefile": 1,
    "partitioning.calendars": 0,
    "partitioning.windows": 1,
    "partitioning.subset": 1,
    "partitioning.model": 2,
    "partitioning.request": 2,
    "partitioning.integrity": 3,
    "partitioning.sizes": 2,
    "partitioning.hive": 3,
    "partitioning.reader": 3,
    "partitioning.fsspec_reader": 4,
    "partitioning.tableformats": 4,
    "partitioning.listing": 5,
    "partitioning.packing": 4,
    "partitioning.pruning": 4,
    "partitioning.footers": 5,
    "partitioning.windowed": 6,
    "partitioning.snapshot": 6,
    "partitioning.explain": 7,
    "partitioning.freezing": 7,
    "partitioning.planner": 8,
    "pipeline.errors": 9,
    "pipeline.private": 9,
    "pipeline.page_checksums": 10,
    "pipeline.uris": 10,
    "pipeline.config": 10,
    "pipeline.printable": 10,
    "pipeline.certificates": 11,
    "pipeline.seaweedfs": 12,
    "pipeline.leaving": 11,
    "pipeline.liveness": 11,
    "pipeline.once": 11,
    "pipeline.outages": 11,
    "pipeline.logs": 11,
    "pipeline.metrics": 11,
    "pipeline.records": 11,
    "pipeline.sparse": 11,
    "pipeline.decoding": 11,
    "pipeline.page_parts": 12,
    "pipeline.user_code": 12,
    "pipeline.stored": 10,
    "pipeline.tables": 10,
    "pipeline.columns": 10,
    "pipeline.tokens": 10,
    "pipeline.units": 11,
    "pipeline.yamlfile": 11,
    "pipeline.layers": 12,
    "pipeline.sections": 12,
    "pipeline.job": 13,
    "pipeline.settings": 13,
    "pipeline.overlap": 14,
    "pipeline.runs": 11,
    "pipeline.runs.transforms": 11,
    "pipeline.batches": 14,
    "pipeline.storage": 14,
    "pipeline.transforms": 14,
    "pipeline.runs.ledger": 12,
    "pipeline.segments": 13,
    "pipeline.key_columns": 14,
    "pipeline.runs.ledger.completion_log": 14,
    "pipeline.runs.ledger.find": 16,
    "pipeline.ledger": 15,
    "pipeline.reading": 15,
    "pipeline.report": 15,
    "pipeline.manifest": 14,
    "pipeline.folding": 16,
    "pipeline.table": 10,
    "pipeline.table.keys": 11,
    "pipeline.table.errors": 15,
    "pipeline.table.head": 16,
    "pipeline.table.retention": 18,
    "pipeline.table.claims": 19,
    "pipeline.table.schemas": 19,
    "pipeline.table.repair": 21,
    "pipeline.catalog": 17,
    "pipeline.appending": 18,
    "pipeline.process": 16,
    "pipeline.reducing": 17,
    "pipeline.mapping": 18,
    "pipeline.publish": 20,
    "pipeline.former_folders": 18,
    "pipeline.engines": 21,
    "pipeline.planning": 21,
    "pipeline.rounds": 22,
    "pipeline.checking": 22,
    "pipeline.driver": 23,
    "pipeline.windowed": 24,
    "pipeline.engine": 22,
    "pipeline.attaching": 24,
    "pipeline.cleaning": 21,
    "pipeline.scanning": 21,
    "pipeline.estimating": 21,
    "pipeline.driving": 25,
    "pipeline.backfill": 26,
    "pipeline.overview": 26,
    "pipeline.flows": 27,
    "pipeline.stack": 28,
    "pipeline.doctor": 28,
    "pipeline.scaling": 28,
    "pipeline.cluster": 28,
    "pipeline.cli": 29,
}

# Packages of a whole distribution that only one room may import, and that room.
DOORS: dict[str, tuple[str, ...]] = {
    "dask": ("pipeline.engine",),
    "distributed": ("pipeline.engine",),
    "prefect_dask": ("pipeline.engine",),
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
    """The longest named prefix of a module: `pipeline.storage.s3` -> `pipeline.storage`."""
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
