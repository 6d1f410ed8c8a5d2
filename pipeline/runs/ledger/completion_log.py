"""Read the completions of a run: segments, appended by workers, and bases, compacted from many.

Bases are in `folded/`, where workers cannot write. Those that earlier releases left among the
segments are ignored: anyone who may write segments could hide all others with a forged base.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from partitioning import ObjectInfo
from pipeline.errors import AlreadyExistsError, StateError
from pipeline.runs.ledger.checks import note, sentences
from pipeline.runs.ledger.records import Problems, Segment
from pipeline.runs.ledger.segments import (
    EMPTY,
    MAX_PACKED,
    join,
    pack_base,
    unpack_base,
    unpack_segments,
)
from pipeline.storage.documents import reading

CONCURRENT_READS = 64
"""Number of segments read at a time. At 100 ms each, a million would take 104 minutes with 16; the
processor time is five minutes in any case."""
BLOCK_SEGMENTS = 256
"""Maximum number of segments whose bytes are in memory at once."""
BLOCK_BYTES = 64 << 20
"""Maximum bytes of segments in memory at once, unless a single one has more."""
FEW_SEGMENTS = 16
"""Number of new segments that are read without looking for a base: they cost less than a listing
and a base. Nearly all runs have no more, and read their ledger several times."""
_SEGMENT = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,240}\.jsonl\.zst")
_BASE = re.compile(r"base-([0-9]{6,9})\.arrow")
_OLD_BASE = re.compile(r"base-[0-9]+\.arrow")

log = logging.getLogger(__name__)


class Objects(Protocol):
    """The part of `pipeline.storage.Storage` that a completion log needs."""

    def objects(self, prefix: str) -> list[ObjectInfo]:
        """List the objects under a prefix."""
        ...

    def after(self, folder: str, name: str) -> list[ObjectInfo]:
        """List the objects of a folder whose names follow `name`."""
        ...

    def get(self, uri: str) -> Any:
        """Read an object."""
        ...

    def put_new(self, uri: str, data: bytes) -> None:
        """Create an object that must not exist."""
        ...


class CompletionLog:
    """Reads a run's segments, each once, and compacts them into bases."""

    def __init__(self, storage: Objects, prefix: str, check: Callable[[Segment], Segment]) -> None:
        """Name a log, without reading anything.

        Args:
            storage: Where the log is.
            prefix: URI of the run's state, with a slash at its end.
            check: Removes invalid entries from what was just read.
        """
        self._storage = storage
        self._prefix = prefix
        self._folder = prefix + "completions/"
        self._check = check
        self._loads = [EMPTY]
        self._names: set[str] = set()
        """Names of the segments read since the base."""
        self._newest = 0
        """Greatest number of an existing base, valid or not."""
        self._compacted: frozenset[str] = frozenset()
        """Names of the segments in the base."""
        self._logged: set[str] = set()
        """Reasons that were logged."""

    def read(self, since: str = "") -> Segment:
        """Read what is new, and return everything, in any order (see `Ledger.read`).

        If nothing is new, this is the object that was returned before.
        """
        self._read_new(since)
        if len(self._loads) > 1:
            self._loads = [join(self._loads)]
        return self._loads[0]

    def of_batch(self, batch: str) -> Segment:
        """Return what one batch has stored."""
        listed = self._storage.objects(f"{self._folder}{batch}-")
        names = [info.uri.removeprefix(self._folder) for info in listed if info.size <= MAX_PACKED]
        if not names:
            return EMPTY  # As nearly always: only a batch that Dask runs again has stored anything.
        return unpack_segments(map(self._fetch, names), self._check)

    def compact(self) -> None:
        """Write all segments read so far as one object, so that the next reader is faster.

        8 workers that flush every 5 s leave 138,000 segments a day: two minutes of reading.
        """
        if not self._names:
            self._read_new()
        if not self._names:
            return  # There are no segments, or all are compacted already.
        whole, names, number = join(self._loads), self._compacted | self._names, self._newest + 1
        try:
            self._storage.put_new(self._base_uri(number), pack_base(whole, names))
        except AlreadyExistsError:
            self._read_base()  # Another process has compacted them: use its base.
            self._read_new()
        else:
            self._newest = number
            self._take_base(whole, names)

    @property
    def uncompacted(self) -> int:
        """Number of segments that were read one by one."""
        return len(self._names)

    def _read_new(self, since: str = "") -> None:
        """Read what is new."""
        listed = self._storage.after(self._folder, since)
        by_name = {info.uri.removeprefix(self._folder): info for info in listed}
        new = sorted(by_name.keys() - self._names - self._compacted)
        if len(new) > FEW_SEGMENTS and not since:
            self._read_base()
            new = sorted(by_name.keys() - self._names - self._compacted)
        if new:
            self._loads.append(self._read_segments([(name, by_name[name].size) for name in new]))
            self._names |= set(new)

    def _read_segments(self, listed: Sequence[tuple[str, int]]) -> Segment:
        """Read segments; objects that cannot be segments, or are too large, are not fetched."""
        refused: Problems = {}
        valid = []
        for name, size in listed:
            if _SEGMENT.fullmatch(name) and size <= MAX_PACKED:
                valid.append((name, size))
            elif not _OLD_BASE.fullmatch(name):
                note(refused, "an object is no segment", 1, f"{name}, of {size:,} bytes")
        loads = [EMPTY, Segment(EMPTY.completions, EMPTY.failures, {}, refused)]
        with ThreadPoolExecutor(CONCURRENT_READS) as pool:
            for block in _blocks(valid):
                loads.append(unpack_segments(pool.map(self._fetch, block), self._check))
        whole = join(loads)
        self._log_problems(whole.problems)
        return whole

    def _log_problems(self, problems: Problems) -> None:
        for reason, sentence in zip(problems, sentences(problems), strict=True):
            if reason not in self._logged:
                self._logged.add(reason)
                log.warning("%s: %s", self._prefix, sentence)

    def _fetch(self, name: str) -> tuple[str, bytes]:
        return name, self._storage.get(self._folder + name).data

    def _read_base(self) -> None:
        """Read the newest valid base, if it is newer than the one in use."""
        prefix = self._prefix + "folded/"
        names = (info.uri.removeprefix(prefix) for info in self._storage.objects(prefix))
        numbers = [int(match[1]) for name in names if (match := _BASE.fullmatch(name))]
        for number in sorted((n for n in numbers if n > self._newest), reverse=True):
            uri = self._base_uri(number)
            try:
                with reading(uri):
                    whole, compacted = unpack_base(self._storage.get(uri).data)
            except StateError as error:
                # Its entries are in the segments too; reading them only takes longer.
                log.warning("%s; the segments are read instead", error)
                continue
            # Segments outside of it are read again; this is rare (two processes that compact).
            self._take_base(self._check(whole), compacted)
            break
        self._newest = max([self._newest, *numbers])

    def _base_uri(self, number: int) -> str:
        return f"{self._prefix}folded/base-{number:06d}.arrow"

    def _take_base(self, whole: Segment, names: frozenset[str]) -> None:
        """Use a base instead of the segments that it was compacted from."""
        self._compacted = names
        self._loads, self._names = [EMPTY, whole], set()


def _blocks(sized: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Cut segments into blocks that fit into memory at once."""
    block: list[str] = []
    total = 0
    for name, size in sized:
        if block and (len(block) == BLOCK_SEGMENTS or total + size > BLOCK_BYTES):
            yield block
            block, total = [], 0
        block.append(name)
        total += size
    if block:
        yield block
