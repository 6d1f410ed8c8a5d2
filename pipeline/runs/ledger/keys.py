"""The final keys of a run's outputs: ordered, below their partition, unique to the run."""

from __future__ import annotations

from urllib.parse import quote

import numpy as np
import polars as pl

from partitioning import Chunk, Plan
from partitioning.model import PARTITION_PREFIX, Status
from pipeline.errors import InputError
from pipeline.table.keys import MAX_OUTPUT_KEY_BYTES
from pipeline.uris import as_prefix, parse

_SHOWN = 100
"""Characters of a folder that an error shows."""


def output_uri(output: str, run: str, chunk: Chunk, attempt: str) -> str:
    """Return the final key of a chunk's output.

    Each attempt has a key of its own: what one has written is never written over by another, and
    what was moved away never comes back under the same key.

    Args:
        output: URI of the output prefix, with a slash at its end.
        run: Id of the run.
        chunk: Of the run's plan.
        attempt: Id of the attempt at the chunk.
    """
    folders = "".join(f"{_folder(name, value)}/" for name, value in chunk.partition)
    return f"{output}{folders}{_name(chunk.index, run, attempt)}"


def reduced_uri(output: str, run: str, attempt: str) -> str:
    """Return the final key of the result of a run's reduce."""
    return f"{output}{_name(0, run, attempt)}"


def _name(index: int, run: str, attempt: str) -> str:
    return f"part-{index:07d}-{run}-{attempt[:8]}.parquet"


def refuse_long_keys(output: str, plan: Plan) -> None:
    """Refuse an output whose keys leave no room for what a rollback adds to them.

    Raises:
        InputError: S3 would not take some of them; both numbers and the folder are named.
    """
    at = parse(as_prefix(output))
    if at.scheme != "s3" or not len(plan):
        return
    folders = folders_of(plan)
    sizes = folders.str.len_bytes()
    longest = int(sizes.max())  # type: ignore[arg-type]
    name = _name(len(plan), "0" * 16, "0" * 8)
    length = len(at.key.encode()) + longest + len(name)
    if length > MAX_OUTPUT_KEY_BYTES:
        folder = str(folders.filter(sizes == longest)[0])
        shown = folder if len(folder) <= _SHOWN else f"{folder[:_SHOWN]}…"
        raise InputError(
            f"a file below {output} would have a key of {length:,} bytes, and "
            f"{MAX_OUTPUT_KEY_BYTES:,} is the most that S3 takes and a rollback can lengthen: its "
            f"partition is {shown}",
            hint="choose a shorter output prefix, or leave the partition out (input.exclude)",
        )


def are_keys_of(output: str, run: str, folders: pl.Series | str = "") -> pl.Expr:
    """Return whether each completion's `uri` is the final key of its index and attempt.

    Args:
        output: URI of the output prefix, with a slash at its end.
        run: Id of the run.
        folders: Of each completion's chunk.
    """
    index = pl.col("index").cast(pl.String).str.zfill(7)
    where = folders if isinstance(folders, pl.Series) else pl.lit(folders)
    stem = pl.concat_str(pl.lit(output), where, pl.lit("part-"), index, pl.lit(f"-{run}"))
    attempt = pl.concat_str(pl.lit("-"), pl.col("attempt").str.slice(0, 8))
    # Attempts of a chunk had one key until the first release.
    return pl.any_horizontal(
        pl.col("uri") == pl.concat_str(stem, suffix, pl.lit(".parquet"))
        for suffix in (attempt, pl.lit(""))
    )


def _folder(name: str, value: object) -> str:
    text = "__HIVE_DEFAULT_PARTITION__" if value is None else quote(str(value), safe="")
    return f"{name}={text}"


def folders_of(plan: Plan) -> pl.Series:
    """Return the folder of each chunk's output, in the plan's order: what `output_uri` puts there.

    All at once: chunk by chunk, a plan of 100,000 takes seconds.
    """
    chunks, objects = plan.chunk_table, plan.table("objects")
    names = [name for name in objects.column_names if name.startswith(PARTITION_PREFIX)]
    if not names or not len(plan):
        return pl.repeat("", len(plan), dtype=pl.String, eager=True)
    groups = plan.table("row_groups")
    owner = groups["object"].to_numpy().astype(np.int64)
    member = groups["kept"].to_numpy() & (objects["status"].to_numpy() == Status.PLANNED)[owner]
    # One more at the end, so that a range may end with the last row group.
    owner, member = np.append(owner, 0), np.append(member, False)
    bounds = np.empty(2 * len(plan), np.int64)
    bounds[::2], bounds[1::2] = chunks["start"].to_numpy(), chunks["stop"].to_numpy()
    columns = {}
    for name in names:
        encoded = objects[name].combine_chunks().dictionary_encode(null_encoding="encode")
        values = encoded.dictionary.to_pylist()
        codes = encoded.indices.to_numpy().astype(np.int64)[owner]
        low = np.minimum.reduceat(np.where(member, codes, len(values)), bounds)[::2]
        high = np.maximum.reduceat(np.where(member, codes, -1), bounds)[::2]
        column = name.removeprefix(PARTITION_PREFIX)
        texts = pl.Series([f"{_folder(column, value)}/" for value in values] + [""])
        columns[name] = texts.gather(np.where(low == high, low, len(values)))
    return pl.DataFrame(columns).select(pl.concat_str(pl.all())).to_series()
