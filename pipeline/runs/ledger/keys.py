"""Make the final keys of a run's outputs: in order, in their partition, unique to the attempt."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import polars as pl

from partitioning import Chunk, Plan
from partitioning.hive_paths import NULL_VALUE, default_raw
from partitioning.model import PARTITION_PREFIX, Status
from pipeline.errors import InputError, PartitionColumnError
from pipeline.table.keys import MAX_OUTPUT_KEY_BYTES
from pipeline.uris import as_prefix, parse

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_SHOWN = 100
"""Maximum number of characters of a folder that an error shows."""


def output_uri(output: str, run: str, chunk: Chunk, attempt: str) -> str:
    """Return the final URI of a chunk's output.

    Each attempt has its own key, so that no attempt overwrites another's output, and a file that
    was moved away never comes back under the same key.

    Args:
        output: URI of the output prefix, with a slash at its end.
        run: Id of the run.
        chunk: Chunk of the run's plan.
        attempt: Id of the attempt at the chunk.
    """
    return f"{output}{chunk_folder(chunk)}{_name(chunk.index, run, attempt)}"


def chunk_folder(chunk: Chunk) -> str:
    """Return the folder of a chunk's output, with a slash at its end; empty if it has none."""
    return "".join(f"{folder_of(name, raw)}/" for name, raw in chunk.raw_partition)


def file_uri(output: str, folder: str, number: int, run: str, attempt: str) -> str:
    """Return the final URI of a merged file, or, without an attempt, what it begins with."""
    return f"{output}{folder}{_name(number, run, attempt)}"


def refuse_long_folders(output: str, folders: Collection[str]) -> None:
    """Refuse folders with keys that are too long for S3, with what a rollback adds to them.

    Raises:
        PartitionColumnError: names both numbers and the folder.
    """
    at = parse(as_prefix(output))
    if at.scheme != "s3" or not folders:
        return
    longest = max(folders, key=lambda folder: len(folder.encode()))
    length = len((at.key + longest + _name(0, "0" * 16, "0" * 8)).encode())
    if length > MAX_OUTPUT_KEY_BYTES:
        raise PartitionColumnError(_too_long(output, longest, length))


def _too_long(output: str, folder: str, length: int) -> str:
    shown = folder if len(folder) <= _SHOWN else f"{folder[:_SHOWN]}…"
    return (
        f"a file below {output} would have a key of {length:,} bytes, but at most "
        f"{MAX_OUTPUT_KEY_BYTES:,} are possible (S3's limit, minus what a rollback adds); its "
        f"partition is {shown}"
    )


def reduced_uri(output: str, run: str, attempt: str) -> str:
    """Return the final URI of the result of a run's reduce."""
    return f"{output}{_name(0, run, attempt)}"


def _name(index: int, run: str, attempt: str) -> str:
    return f"part-{index:07d}-{run}-{attempt[:8]}.parquet"


def refuse_long_keys(output: str, plan: Plan) -> None:
    """Refuse an output with keys that are too long for S3, with what a rollback adds to them.

    Raises:
        InputError: names both numbers and the folder.
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
        raise InputError(
            _too_long(output, folder, length),
            hint="choose a shorter output prefix, or leave the partition out (input.exclude)",
        )


def are_keys_of(output: str, run: str, folders: pl.Series | str = "") -> pl.Expr:
    """Build an expression: whether each completion's `uri` is the one of its index and attempt.

    Args:
        output: URI of the output prefix, with a slash at its end.
        run: Id of the run.
        folders: Folder of each completion's chunk.
    """
    index = pl.col("index").cast(pl.String).str.zfill(7)
    where = folders if isinstance(folders, pl.Series) else pl.lit(folders)
    stem = pl.concat_str(pl.lit(output), where, pl.lit("part-"), index, pl.lit(f"-{run}"))
    attempt = pl.concat_str(pl.lit("-"), pl.col("attempt").str.slice(0, 8))
    # Before the first release, all attempts at a chunk had the same key.
    return pl.any_horizontal(
        pl.col("uri") == pl.concat_str(stem, suffix, pl.lit(".parquet"))
        for suffix in (attempt, pl.lit(""))
    )


def folder_of(name: str, raw: str) -> str:
    """Return the folder of a Hive value, spelled as in the input."""
    return f"{name}={raw}"


def folders_of(plan: Plan) -> pl.Series:
    """Return the folder of each chunk's output (see `output_uri`), in the plan's order.

    Computed for all chunks at once: one by one, a plan of 100,000 chunks takes seconds.
    """
    return _folders(plan, respelled=False)


def respelled_folders_of(plan: Plan) -> pl.Series:
    """Return the same folders with each value in its shortest spelling."""
    return _folders(plan, respelled=True)


def former_folders_of(plan: Plan) -> pl.Series | None:
    """Return the folders in which an earlier release has put the outputs of its plan.

    Earlier releases used the shortest spelling: `month=1` for `month=01`. None if that makes no
    difference, and for plans of this release.
    """
    if plan.has_raw_folders:
        return None
    former = respelled_folders_of(plan)
    return None if former.equals(folders_of(plan)) else former


def _folders(plan: Plan, *, respelled: bool) -> pl.Series:
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
    uris = pl.Series(pl.from_arrow(objects["uri"]))
    columns = {}
    for name in names:
        column = name.removeprefix(PARTITION_PREFIX)
        encoded = objects[name].combine_chunks().dictionary_encode(null_encoding="encode")
        values = pl.Series(map(default_raw, encoded.dictionary.to_pylist()), dtype=pl.String)
        codes = encoded.indices.to_numpy().astype(np.int64)
        shared = _shared(codes, owner, member, bounds)
        spelled = values.gather(shared)
        if not respelled:
            raws = _raws(uris, column, values.gather(codes))
            kinds = raws.unique(maintain_order=True)
            ranks = raws.replace_strict(kinds, np.arange(len(kinds)), return_dtype=pl.Int64)
            own = kinds.gather(_shared(ranks.to_numpy(), owner, member, bounds))
            # A value may be spelled in several ways within a chunk: see `Chunk.raw_partition`.
            spelled = own.fill_null(spelled).set(spelled.is_null(), None)
        columns[name] = (f"{column}=" + spelled + "/").fill_null("")
    return pl.DataFrame(columns).select(pl.concat_str(pl.all())).to_series()


def _shared(codes: Ints, owner: Ints, member: Bools, bounds: Ints) -> pl.Series:
    """Return the code that all objects of a chunk share; null if they differ.

    Args:
        codes: Code of each object.
        owner: Object of each row group.
        member: Whether a row group is read.
        bounds: Start and stop of each chunk's row groups, alternating.
    """
    own = codes[owner]
    most = int(codes.max()) + 1
    low = np.minimum.reduceat(np.where(member, own, most), bounds)[::2]
    high = np.maximum.reduceat(np.where(member, own, -1), bounds)[::2]
    return pl.Series(low).set(pl.Series(low != high), None)


def _raws(uris: pl.Series, column: str, spelled: pl.Series) -> pl.Series:
    """Return the raw text of a column in each object's folders; see `Fragment.raw_partition`."""
    pattern = rf"(?s)^(?:.*/)?{pl.escape_regex(column)}=([^/]*)/"
    raws = uris.str.extract(pattern, 1).fill_null(spelled)
    return raws.set(spelled == NULL_VALUE, NULL_VALUE)
