"""What is simulated, and what of it makes no sense."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from pipeline.config.sections import BatchSettings
from pipeline.config.units import parse_seconds, parse_size
from pipeline.errors import UsageError

MOST_CHUNKS = 10_000_000
"""More would take minutes and gigabytes to simulate."""
MOST_WORKERS = 1_000_000
MOST_BYTES = 10**21
_WORDS = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_NUMBER = re.compile(r"(\d[\d_,]*(?:\.\d+)?(?:e\+?\d+)?)\s*([kmbgt]?)", re.IGNORECASE)
_LARGE = {"pb": 10**15, "pib": 2**50, "eb": 10**18, "eib": 2**60}
_LARGE_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([pe]i?b)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Case:
    """One run that is simulated.

    Attributes:
        workers: Worker threads, each in a process of its own.
        chunks: Of equal size.
        stored_bytes: Of the columns that are read, over all chunks.
        files: Objects of the input.
        rows: For rows a second, and for what chunks that are combined cost; 0 if they are not
            known.
        wait_seconds: Seconds that the transform waits on each chunk, in addition to computing.
        prefixes: Over which input and output are spread: S3 limits requests on each.
        batches: The engine's settings.
        footer_mappers: From this many objects on the cluster reads the footers.
        cold: Whether workers have to open the run first, as they do the first time.
        reduces: Whether chunks are combined instead of staged: one result in the end.
    """

    workers: int
    chunks: int
    stored_bytes: float
    files: int
    rows: float = 0.0
    wait_seconds: float = 0.0
    prefixes: int = 1
    batches: BatchSettings = field(default_factory=BatchSettings)
    footer_mappers: int = 20_000
    cold: bool = True
    reduces: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be, with both numbers.

        Raises:
            UsageError: a number is out of its bounds.
        """
        for name, value, most in (
            ("workers", self.workers, MOST_WORKERS),
            ("chunks", self.chunks, MOST_CHUNKS),
            ("files", self.files, 10**12),
            ("prefixes", self.prefixes, 10**6),
        ):
            if not 1 <= value <= most:
                raise UsageError(f"{name} {value:,} is not between 1 and {most:,}")
        if not 0 < self.stored_bytes <= MOST_BYTES:
            raise UsageError(f"bytes {self.stored_bytes:g} are not between 1 and {MOST_BYTES:g}")
        if not 0 <= self.wait_seconds <= 86_400:
            raise UsageError(f"a wait of {self.wait_seconds:g} s is not between 0 s and a day")
        if self.stored_bytes < self.chunks:
            raise UsageError(
                f"{self.stored_bytes:,.0f} bytes cannot be cut into {self.chunks:,} chunks",
                hint="give fewer chunks, or more bytes",
            )

    @property
    def chunk_bytes(self) -> float:
        """Stored bytes that are read of one chunk."""
        return self.stored_bytes / self.chunks


def parse_count(text: str, name: str, *, least: int = 1) -> int:
    """A whole number as people write it: `1000`, `1e6`, `1_000_000`, `2.5M`.

    Raises:
        UsageError: it is none, or too small.
    """
    found = _NUMBER.fullmatch(text.strip())
    value = math.nan
    if found is not None:
        value = float(re.sub("[_,]", "", found[1])) * _WORDS.get(found[2].lower(), 1)
    if not math.isfinite(value) or value != round(value):
        raise UsageError(f"--{name} {text!r} is not a whole number such as 1000, 1e6 or 2.5M")
    if value < least:
        raise UsageError(f"--{name} {text!r} is below {least}")
    return round(value)


def parse_bytes(text: str) -> float:
    """A size as people write it, up to exabytes: `100TB`, `1.5 PiB`.

    Raises:
        UsageError: it is none.
    """
    large = _LARGE_SIZE.fullmatch(text)
    if large is not None:
        return float(large[1]) * _LARGE[large[2].lower()]
    try:
        return float(parse_size(text))
    except ValueError as error:
        raise UsageError(f"--bytes {text!r} is not a size such as 500GB or 100TB") from error


def parse_wait(text: str) -> float:
    """A length of time: `100ms`, `2s`.

    Raises:
        UsageError: it is none.
    """
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise UsageError(f"--wait {text!r} is not a time such as 100ms or 2s") from error
