"""What a run stores for the checks of its result, next to its ledger.

checks.json                the checks, where they are other than those of the stored job
checks/<attempt>.arrow   columns of one result whose values checks need, of all chunks together
checks/<attempt>.rejected.parquet   rows of one result in quarantine
check_results.json         what the checks have found (check_results/<window>.json in a backfill)
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal, Self

import polars as pl
from pydantic import BaseModel, ConfigDict

from pipeline.config.job_checks import Checks
from pipeline.quality.figures import Figures, Wanted
from pipeline.quality.results import CheckResult
from pipeline.quality.rows import FailingRows
from pipeline.storage import Storage
from pipeline.storage.documents import Moment

FOLDER = "checks/"
"""Folder, below a run's prefix, of the columns that checks look into."""
RESULTS = "check_results"
Codec = Literal["uncompressed", "lz4", "zstd"]
CODECS: Final[tuple[Codec, ...]] = ("uncompressed", "lz4", "zstd")
"""From the fastest to the smallest: each is taken where it halves the bytes of the one before."""
_SAMPLE_ROWS: Final = 10_000
"""Rows by which a codec is chosen."""


class StoredChecks(BaseModel):
    """The checks of a run's result."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    checks: Checks


class StoredResults(BaseModel):
    """What the checks of a run's result have found."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    subject: str
    """Digest of the checks and of what was checked."""
    at: Moment
    """Time of the checks, in Unix seconds."""
    results: tuple[CheckResult, ...]


def checks_identity(checks: Checks) -> dict[str, Any]:
    """Return what checks need of each chunk; empty without checks.

    A run that needs anything else is another run.
    """
    identity = {"needs": Wanted.of(checks).identity()} if checks.run else {}
    if checks.rows is not None:
        identity["rows"] = checks.rows.model_dump(exclude={"max_quarantined"})
    return identity


@dataclass(frozen=True, slots=True)
class KeptColumns:
    """The stored columns of one result."""

    attempt: str
    sha256: str
    bytes: int
    rows: int


def results_name(window: str | None) -> str:
    """Return the name, below a run's prefix, of what checks have found in a window or in all."""
    return f"{RESULTS}.json" if window is None else f"{RESULTS}/{window}.json"


def columns_uri(prefix: str, attempt: str) -> str:
    """Return the URI of an attempt's stored columns."""
    return f"{prefix}{FOLDER}{attempt}.arrow"


def rejected_name(run: str, attempt: str) -> str:
    """Return the name, below an output's state, of an attempt's rows in quarantine."""
    return f"runs/{run}/{FOLDER}{attempt}.rejected.parquet"


def store_rejected(
    storage: Storage, state: str, run: str, attempt: str, rows: pl.DataFrame
) -> None:
    """Store rows in quarantine; publishing copies them next to the output."""
    buffer = io.BytesIO()
    rows.write_parquet(buffer, compression="zstd")
    storage.put_new(state + rejected_name(run, attempt), buffer.getvalue())


def store_columns(
    storage: Storage,
    prefix: str,
    attempt: str,
    frame: pl.DataFrame,
    columns: Sequence[str] | None,
) -> KeptColumns:
    """Store columns of a result; None stands for all."""
    kept = frame if columns is None else frame[list(columns)]
    data = pack_columns(kept)
    storage.put_new(columns_uri(prefix, attempt), data)
    digest = hashlib.sha256(data).hexdigest()
    return KeptColumns(attempt, digest, len(data), frame.height)


def pack_columns(frame: pl.DataFrame) -> bytes:
    """Return the bytes of a file of columns, by the codec that pays for them.

    The values of a sorted key take an eighth of the bytes with zstd, in the same time. Those of an
    unordered one take more than half, in six times the time with lz4, and in twenty with zstd.
    """
    sample = frame.head(_SAMPLE_ROWS)
    packed = {codec: _ipc(sample, codec) for codec in CODECS}
    best: Codec = "uncompressed"
    for before, codec in pairwise(CODECS):
        if 2 * len(packed[codec]) <= len(packed[before]):
            best = codec
    return packed[best] if sample.height == frame.height else _ipc(frame, best)


def _ipc(frame: pl.DataFrame, codec: Codec) -> bytes:
    buffer = io.BytesIO()
    frame.write_ipc(buffer, compression=codec)  # Faster than Parquet.
    return buffer.getvalue()


def checked_text(
    figures: Figures, kept: KeptColumns | None = None, failing: FailingRows | None = None
) -> str:
    """Format what is known of a result, for its completion."""
    value = {"rows": figures.rows, **figures.to_json()}
    if kept is not None:
        value["kept"] = [kept.sha256, kept.bytes]
    if failing is not None and failing.count:
        value["failing"] = failing.to_json()
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def is_checked(attempt: str, rows: int, text: str, wanted: Wanted) -> bool:
    """Whether a completion says what checks need to know of its result."""
    try:
        return text != "" and (
            (CheckedResult.of(attempt, rows, text).kept is not None) == wanted.keeps
        )
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class CheckedResult:
    """What is known of the result of one attempt."""

    figures: Figures
    kept: KeptColumns | None
    failing: FailingRows
    """Rows that break rules of the job's schema, kept or not."""

    @classmethod
    def of(cls, attempt: str, rows: int, text: str) -> Self:
        """Read what `checked_text` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            value: Mapping[str, Any] = json.loads(text) if text else {"rows": rows}
            if value["rows"] != rows:
                raise ValueError(f"it says {value['rows']} rows, not {rows}")
            figures = Figures.from_json(rows, value)
            kept = None
            if "kept" in value:
                digest, size = value["kept"]
                kept = KeptColumns(attempt, str(digest), int(size), rows)
            failing = FailingRows()
            if "failing" in value:
                failing = FailingRows.from_json(value["failing"])
        except (TypeError, AttributeError, KeyError, ArithmeticError) as error:
            raise ValueError(f"it is no figures of checks: {text[:80]!r}") from error
        return cls(figures, kept, failing)
