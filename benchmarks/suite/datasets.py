"""The datasets by name: seeded, made once into S3, each described by a card.

<root>/datasets/<name>-<scale>/card.json     what it is; written last, so a card means complete
<root>/datasets/<name>-<scale>/data/…        the files
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from benchmarks.suite import generating
from pipeline.storage import Storage

Scale = Literal["s", "m", "l"]
SEED = 20260101
VERSION = 1
"""Version of the generators: with another number every dataset is made again."""

Make = Callable[[], Iterable[generating.File]]


class Card(BaseModel):
    """What a dataset is, as counted from the files that were written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    scale: str
    uri: str
    """Prefix of its files."""
    version: int
    seed: int
    rows: int
    files: int
    row_groups: int
    bytes: int
    """Stored, compressed."""
    columns: dict[str, str]
    """Name to Arrow type, as the first file has them."""
    made_seconds: float


@dataclass(frozen=True, slots=True)
class Dataset:
    """One named dataset in three sizes."""

    name: str
    says: str
    makers: Mapping[Scale, Make]


def _sizes(small: Make, middle: Make, large: Make) -> dict[Scale, Make]:
    return {"s": small, "m": middle, "l": large}


def _tpch(make: Callable[[int, int], Iterable[generating.File]], parts: int) -> dict[Scale, Make]:
    return _sizes(
        *(partial(make, factor, max(parts, parts // 2 * factor)) for factor in (1, 4, 20))
    )


def _trc(files: int, rows: int) -> Make:
    return partial(generating.measurements, files, rows, 500_000, SEED)


def _groups(groups: int) -> Make:
    return partial(generating.row_groups, 10, groups, 4, SEED)


DATASETS: Mapping[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            "lineitem",
            "TPC-H lineitem at scale factors 1, 4 and 20 (6, 24 and 120 million rows)",
            _tpch(generating.lineitem, 8),
        ),
        Dataset(
            "orders",
            "TPC-H orders at scale factors 1, 4 and 20",
            _tpch(generating.orders, 4),
        ),
        Dataset(
            "supplier",
            "TPC-H supplier, the small side of a join",
            _tpch(generating.supplier, 1),
        ),
        Dataset(
            "measurements",
            "the one-trillion-row challenge's shape: 10, 100 and 1,000 million rows",
            _sizes(_trc(10, 1_000_000), _trc(20, 5_000_000), _trc(100, 10_000_000)),
        ),
        Dataset(
            "events",
            "Zipf keys, strings, and one row group 50 times the others",
            _sizes(
                partial(generating.events, 8, 100_000, 20_000, SEED),
                partial(generating.events, 20, 200_000, 20_000, SEED),
                partial(generating.events, 50, 400_000, 40_000, SEED),
            ),
        ),
        Dataset(
            "small",
            "2,000, 20,000 and 100,000 files of 4 KiB and two row groups",
            _sizes(*(partial(generating.small, n, 250, 2, SEED) for n in (2_000, 20_000, 100_000))),
        ),
        Dataset(
            "one",
            "a single file of 10 rows",
            dict.fromkeys(("s", "m", "l"), partial(generating.small, 1, 10, 1, SEED)),
        ),
        Dataset(
            "windows",
            "2,000 and 10,000 Hive partitions, one a day, each of one file of 10 rows",
            _sizes(*(partial(generating.windows, n, 10, SEED) for n in (2_000, 10_000, 10_000))),
        ),
        Dataset(
            "wide",
            "100 columns, ten of them nested",
            _sizes(
                partial(generating.wide, 8, 50_000, 10_000, SEED),
                partial(generating.wide, 16, 100_000, 20_000, SEED),
                partial(generating.wide, 64, 200_000, 40_000, SEED),
            ),
        ),
        Dataset(
            "daily",
            "three years of Hive partitions, one file a day",
            _sizes(*(partial(generating.daily, 1096, n, SEED) for n in (200, 2_000, 20_000))),
        ),
        Dataset(
            "row-groups",
            "10 files of 100, 1,000 and 10,000 row groups of 4 rows: many chunks, little data",
            _sizes(*(_groups(n) for n in (100, 1_000, 10_000))),
        ),
    )
}


def prefix_of(root: str, name: str, scale: Scale) -> str:
    """Where a dataset lives."""
    return f"{root.rstrip('/')}/datasets/{name}-{scale}/"


def find_card(storage: Storage, root: str, name: str, scale: Scale) -> Card | None:
    """The card of a dataset that is there, whole and of the present version."""
    blob = storage.get_or_none(prefix_of(root, name, scale) + "card.json")
    if blob is None:
        return None
    card = Card.model_validate_json(blob.data)
    return card if (card.version, card.seed) == (VERSION, SEED) else None


def ensure(
    storage: Storage,
    root: str,
    name: str,
    scale: Scale,
    echo: Callable[[str], None] = lambda line: None,
) -> Card:
    """The card of a dataset, which is made first if it is not there.

    Args:
        storage: Where it goes.
        root: URI under which all benchmark data lives.
        name: One of DATASETS.
        scale: `s`, `m` or `l`.
        echo: Told when something is made.
    """
    found = find_card(storage, root, name, scale)
    if found is not None:
        return found
    echo(f"making dataset {name}-{scale}: {DATASETS[name].says}")
    uri = prefix_of(root, name, scale)
    card = _make(storage, uri, DATASETS[name], scale)
    storage.put(uri + "card.json", card.model_dump_json(indent=1).encode())
    echo(f"made {name}-{scale}: {card.rows:,} rows in {card.files:,} files, {card.bytes:,} bytes")
    return card


def _make(storage: Storage, uri: str, dataset: Dataset, scale: Scale) -> Card:
    clock = time.perf_counter()
    data = uri + "data/"
    rows = files = groups = stored = 0
    columns: dict[str, str] = {}
    for stray in storage.objects(data):  # of a generation that was cut short
        storage.delete(stray.uri)
    with ThreadPoolExecutor(8) as pool:
        made = iter(dataset.makers[scale]())
        # A few at a time: all files of a large dataset would not fit into memory.
        while batch := list(islice(made, 8)):
            list(pool.map(lambda file: storage.put(data + file[0], file[1]), batch))
            for _, body in batch:
                footer = pq.read_metadata(io.BytesIO(body))
                rows, groups = rows + footer.num_rows, groups + footer.num_row_groups
                files, stored = files + 1, stored + len(body)
            if not columns:
                schema = pq.read_schema(io.BytesIO(batch[0][1]))
                columns = {field.name: str(field.type) for field in schema}
    return Card(
        name=dataset.name,
        scale=scale,
        uri=data,
        version=VERSION,
        seed=SEED,
        rows=rows,
        files=files,
        row_groups=groups,
        bytes=stored,
        columns=columns,
        made_seconds=round(time.perf_counter() - clock, 3),
    )
