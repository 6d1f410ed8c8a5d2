"""Look at an input through its first object: enough to write a job for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from partitioning import PlanRequest, plan_dataset
from partitioning.hive_paths import raw_values
from partitioning.listing import list_objects
from pipeline.storage import Storage, StorageReader, parse


@dataclass(frozen=True, slots=True)
class InputSample:
    """An input, as far as its listing and one object show it."""

    objects: int
    first: str
    """URI of the object that was looked at."""
    schema: pl.Schema
    """Columns of that object, with those of its folders."""
    partitions: tuple[str, ...]
    """Names of the columns that are in the names of folders."""


def sample_input(uri: str, storage: Storage) -> InputSample:
    """List an input and read one footer.

    Raises:
        PlanningError: There is no Parquet, or the first object cannot be read.
    """
    request = PlanRequest(uri=(parse(uri).uri,))
    reader = StorageReader(storage)
    listed = list_objects(request, reader)
    pairs = zip(listed.objects, listed.directories, strict=True)
    info, directory = min(pairs, key=lambda pair: pair[0].uri)
    alone = replace(request, uri=(info.uri,), include=("**",))
    schema = plan_dataset(alone, reader).plan.dtypes
    partitions = tuple(name for name, _ in raw_values(directory))
    # Planned alone, the object also has the partition columns above the input's prefix.
    above = {name for name, _ in raw_values(info.uri)} - set(partitions)
    kept = pl.Schema({name: kind for name, kind in schema.items() if name not in above})
    return InputSample(len(listed.objects), info.uri, kept, partitions)
