"""Compute what a workload must write, without any engine: one file after the other."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from benchmarks import transforms
from benchmarks.suite.answers import difference
from benchmarks.suite.datasets import Card
from benchmarks.suite.digest import Digest, digest, read, total
from benchmarks.suite.workloads import Workload, bound_params
from pipeline.storage import Storage

Map = Callable[[pl.LazyFrame], pl.LazyFrame]


@dataclass(frozen=True, slots=True)
class Expected:
    """What a workload must write."""

    schema: Mapping[str, pl.DataType]
    digest: Digest


def expect(storage: Storage, root: str, workload: Workload, card: Card, tasks: int = 0) -> Expected:
    """What must come out: the transform over one file after the other, without any engine.

    It is kept in S3, under the hash of what it depends on.

    Args:
        storage: Where the data is.
        root: URI under which all benchmark data lives.
        workload: The workload.
        card: Of its dataset.
        tasks: How many chunks of it are mapped, where the workload takes only some.

    Raises:
        RuntimeError: it is not the published answer, where there is one.
    """
    params = bound_params(workload, root, card.scale)
    # Chunks that fail or wait on purpose come out as they went in.
    same = workload.kind in ("resume", "wait", "publish") and workload.name != "resume"
    function = transforms.same if same else getattr(transforms, workload.transform)
    limit = tasks * workload.rows_per_task
    files = sorted(info.uri for info in storage.objects(card.uri))

    def mapped(lf: pl.LazyFrame) -> pl.LazyFrame:
        some = lf.filter(pl.col("id") < limit) if limit else lf
        result: pl.LazyFrame = function(some, **({} if same else params))
        return result

    head = read(storage, files[0]).head(0).lazy()
    schema = dict(_reduced(workload, [mapped(head)]).collect_schema())
    sources = [inspect.getsource(each) for each in (function, *_functions(workload))]
    said = json.dumps([sources, params, limit, card.model_dump(), str(schema)])
    key = hashlib.sha256(said.encode()).hexdigest()[:16]
    uri = f"{root.rstrip('/')}/expected/{workload.name}-{card.scale}-{key}.json"
    stored = storage.get_or_none(uri)
    if stored is not None:
        return Expected(schema, Digest(**json.loads(bytes(stored.data))))
    results = (mapped(read(storage, uri).lazy()).collect() for uri in files)
    if workload.reduce:
        whole = _known(
            workload, card, _reduced(workload, [result.lazy() for result in results]), schema
        )
    else:
        whole = total(digest(result, schema) for result in results)
    body = {"rows": whole.rows, "exact": whole.exact, "sums": dict(whole.sums)}
    storage.put(uri, json.dumps(body).encode())
    return Expected(schema, whole)


def _functions(workload: Workload) -> list[Any]:
    return [getattr(transforms, name) for name in workload.reduce.values()]


def _reduced(workload: Workload, partials: list[pl.LazyFrame]) -> pl.LazyFrame:
    """Partials combined and finalized; without a reduce, there is just one."""
    if not workload.reduce:
        return partials[0]
    combined: pl.LazyFrame = getattr(transforms, workload.reduce["combine"])(partials)
    if "finalize" in workload.reduce:
        combined = getattr(transforms, workload.reduce["finalize"])(combined)
    return combined


def _known(
    workload: Workload, card: Card, lf: pl.LazyFrame, schema: Mapping[str, pl.DataType]
) -> Digest:
    """The digest of a result, which must be the published one where there is one."""
    frame = lf.collect()
    problem = difference(workload.name, card.scale, frame)
    if problem:
        raise RuntimeError(f"{workload.name} is not the published answer: {problem}")
    return digest(frame, schema)
