"""Which floor each module stands on. A module imports from lower floors only.

A package that is named as a whole (`pipeline.storage`) is one room: its own files may import each
other. A new module needs a line here: the lowest floor that lets it import what it needs.
"""

FLOORS: dict[str, int] = {
    "partitioning.errors": 0,
    "partitioning.globs": 0,
    "partitioning.filters": 1,
    "partitioning.schemas": 1,
    "partitioning.tablefile": 1,
    "partitioning.calendars": 0,
    "partitioning.windows": 1,
    "partitioning.subset": 1,
    "partitioning.model": 2,
    "partitioning.request": 2,
    "partitioning.sizes": 2,
    "partitioning.hive": 3,
    "partitioning.reader": 3,
    "partitioning.fsspec_reader": 4,
    "partitioning.listing": 4,
    "partitioning.packing": 4,
    "partitioning.pruning": 4,
    "partitioning.footers": 5,
    "partitioning.windowed": 5,
    "partitioning.snapshot": 6,
    "partitioning.explain": 7,
    "partitioning.freezing": 7,
    "partitioning.planner": 8,
    "pipeline.errors": 10,
    "pipeline.config": 10,
    "pipeline.printable": 10,
    "pipeline.certificates": 11,
    "pipeline.leaving": 11,
    "pipeline.liveness": 11,
    "pipeline.once": 11,
    "pipeline.outages": 11,
    "pipeline.logs": 11,
    "pipeline.metrics": 11,
    "pipeline.records": 11,
    "pipeline.sparse": 11,
    "pipeline.units": 11,
    "pipeline.yamlfile": 11,
    "pipeline.layers": 12,
    "pipeline.sections": 12,
    "pipeline.job": 13,
    "pipeline.settings": 13,
    "pipeline.runs": 11,
    "pipeline.runs.transforms": 11,
    "pipeline.batches": 14,
    "pipeline.storage": 14,
    "pipeline.transforms": 14,
    "pipeline.segments": 14,
    "pipeline.ledger": 15,
    "pipeline.reading": 15,
    "pipeline.report": 15,
    "pipeline.manifest": 14,
    "pipeline.folding": 15,
    "pipeline.refusals": 15,
    "pipeline.catalog": 16,
    "pipeline.process": 16,
    "pipeline.reducing": 17,
    "pipeline.mapping": 18,
    "pipeline.versions": 17,
    "pipeline.publish": 18,
    "pipeline.engines": 19,
    "pipeline.planning": 19,
    "pipeline.rounds": 20,
    "pipeline.checking": 20,
    "pipeline.driver": 21,
    "pipeline.windowed": 22,
    "pipeline.engine": 20,
    "pipeline.attaching": 22,
    "pipeline.cleaning": 19,
    "pipeline.scanning": 19,
    "pipeline.estimating": 19,
    "pipeline.driving": 23,
    "pipeline.backfill": 24,
    "pipeline.overview": 24,
    "pipeline.flows": 25,
    "pipeline.stack": 26,
    "pipeline.doctor": 26,
    "pipeline.scaling": 26,
    "pipeline.cluster": 26,
    "pipeline.cli": 27,
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
