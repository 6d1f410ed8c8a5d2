"""What everything costs: the typed form of parameters.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UsageError

FILE = Path(__file__).parent / "parameters.json"

Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Driver(_Section):
    """The flow's process: one thread decides, so its costs add up. Seconds of it."""

    start_seconds: Cost
    """From the command until planning begins, and from the report until it ends."""
    submit_seconds: Cost
    """To submit one batch: Prefect's task run and Dask's future."""
    settle_seconds: Cost
    """To take in one batch that has come back."""
    poll_seconds: Cost
    """For each batch in flight, each time that the driver looks which have come back."""
    segment_seconds: Cost
    """Seconds to read one segment of completions, without the request."""
    entry_seconds: Cost
    """For each completion in it."""
    known_seconds: Cost
    """For each completion that is known already, each time that the ledger is read."""
    key_seconds: Cost
    """For each key of a listing."""
    fold_seconds: Cost
    """For each completion, each time that the ledger is folded."""
    plan_file_seconds: Cost
    """For each object that is listed and whose footer is read by one process."""
    plan_chunk_seconds: Cost
    """For each chunk: to pack, freeze and store the plan."""
    publish_file_seconds: Cost
    """For each staged output: to look for it and to make it visible."""
    report_chunk_seconds: Cost
    """For each chunk: to make the report."""


class Worker(_Section):
    """One worker thread, with a core of its own. Seconds of it."""

    open_seconds: Cost
    """To open a run, once a process: its record, its job, its code."""
    open_chunk_seconds: Cost
    """For each chunk of the plan, once a process."""
    batch_seconds: Cost
    """To begin and end one batch, in Dask and Prefect."""
    enter_seconds: Cost
    """To begin and end one batch, in the engine: what an earlier try stored, its completions."""
    chunk_seconds: Cost
    """For each chunk, however small: reader, Polars query, encoder, hashes."""
    byte_seconds: Cost
    """For each decoded byte: a row-wise map, from Parquet to Parquet."""
    aggregate_row_seconds: Cost
    """For each row of a job that reduces: read, and grouped by a column of some hundred values."""
    flush_seconds: Cost
    """Seconds to store completions once, without the request."""


class Services(_Section):
    """Other processes, each with one thread: seconds per batch."""

    scheduler_seconds: Cost
    """Dask's scheduler."""
    prefect_seconds: Cost
    """Prefect's server. It runs behind: nobody waits for it, but for the last few seconds."""


class Data(_Section):
    """The shape of the data, where the case does not say it. Shares and numbers."""

    decoded_share: Rate
    """Decoded bytes for each stored byte that is read."""
    output_share: Cost
    """Stored bytes of output for each stored byte that is read."""
    reads_per_chunk: Rate
    """Range requests for the columns of a chunk, without the one for the footer."""
    plan_bytes_per_chunk: Cost
    """Stored bytes of a plan for each of its chunks."""
    state_bytes_per_chunk: Cost
    """Stored bytes of completions for each chunk."""


class Store(_Section):
    """An object store and the machines next to it."""

    get_seconds: Cost
    """To the first byte of a GetObject."""
    put_seconds: Cost
    """Of a small PutObject, CopyObject, or step of a multipart upload."""
    list_seconds: Cost
    """Of a page of 1,000 keys."""
    stream_bytes: Rate
    """Bytes a second of one request."""
    gets_per_second: Rate
    """Most GetObject and HeadObject a second on one prefix."""
    puts_per_second: Rate
    """Most of the others a second on one prefix."""
    cores: int = Field(ge=0)
    """Cores that everything together shares; 0: each worker has its own, and so has the driver."""
    cpu_seconds: Cost
    """Of those cores, in the store, for a small request; 0 if it is elsewhere."""


class Prices(_Section):
    """US dollars."""

    put_1000: Cost
    """A thousand requests of PUT, COPY, POST or LIST."""
    get_1000: Cost
    """A thousand of GET and all others; deletes and aborts are free."""
    worker_hour: Cost
    """One worker thread for an hour."""


class Parameters(_Section):
    """All of it."""

    driver: Driver
    worker: Worker
    services: Services
    data: Data
    store: Store
    prices: Prices


SECTIONS = tuple(Parameters.model_fields)


def stores(path: Path = FILE) -> list[str]:
    """The object stores that a file of parameters knows."""
    return list(read_parameters(path)["stores"])


def load_parameters(
    store: str, path: Path = FILE, changes: Mapping[str, str] | None = None
) -> Parameters:
    """The parameters of a file, with some changed.

    Args:
        store: Which of its object stores.
        path: The file.
        changes: Name (`driver.submit_seconds`) to value.

    Raises:
        UsageError: the file is none, or there is no such store or parameter, or no such value.
    """
    said = read_parameters(path)
    if store not in said["stores"]:
        raise UsageError(
            f"no object store {store!r} in {path.name}",
            hint=f"there are {', '.join(said['stores'])}",
        )
    values: dict[str, dict[str, Any]] = {
        name: {key: one["value"] for key, one in said["parameters"].get(name, {}).items()}
        for name in SECTIONS
    }
    values["store"] = {key: one["value"] for key, one in said["stores"][store].items()}
    for name, value in (changes or {}).items():
        section, _, key = name.partition(".")
        if key not in values.get(section, {}):
            raise UsageError(
                f"no parameter {name!r}",
                hint="there are "
                + ", ".join(
                    f"{section}.{each}" for section in SECTIONS for each in values[section]
                ),
            )
        values[section][key] = value
    try:
        return Parameters.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UsageError(f"parameter {name}: {first['msg']} (it is {first['input']!r})") from error


def sources(
    store: str, path: Path = FILE, changes: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Each parameter with its value and where that comes from."""
    said = read_parameters(path)
    groups = {**said["parameters"], "store": said["stores"][store]}
    found = {
        f"{section}.{key}": f"{one['value']:g}: {one['source']}"
        for section, group in groups.items()
        for key, one in group.items()
    }
    return found | {name: f"{value}: asked for" for name, value in (changes or {}).items()}


def read_parameters(path: Path) -> dict[str, Any]:
    """Read a file of parameters, each with its source.

    Raises:
        UsageError: The file is none.
    """
    try:
        said: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if {"parameters", "stores"} <= said.keys():
            return said
        problem = "it has no parameters and stores"
    except (OSError, ValueError) as error:
        problem = str(error)
    raise UsageError(
        f"{path} holds no parameters: {problem}",
        hint="write some with: chunkmap bench fit",
    )
