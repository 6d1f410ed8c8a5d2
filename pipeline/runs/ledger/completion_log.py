"""The completions of a run as objects: segments, which workers append, and bases, which hold many.

Bases lie in `folded/`, where workers cannot write. Those that earlier releases left among the
segments are not believed: whoever may write segments could hide all others with one.
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
    MOST_PACKED,
    joined,
    pack_base,
    unpack_base,
    unpack_segments,
)
from pipeline.storage.documents import reading

READERS = 64
"""Segments read at a time. At 100 ms each, 16 would take an hour and three quarters for a million,
and processor time, the same for any number, takes five minutes."""
BLOCK = 256
"""Segments whose bytes are held at once, at most."""
BLOCK_BYTES = 64 << 20
"""Bytes of segments that are held at once, unless one alone has more."""
_SEGMENT = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,240}\.jsonl\.zst")
_BASE = re.compile(r"base-([0-9]{6,9})\.arrow")
_OLD_BASE = re.compile(r"base-[0-9]+\.arrow")

log = logging.getLogger(__name__)


class Objects(Protocol):
    """What a log needs of `pipeline.storage.Storage`."""

    def objects(self, prefix: str) -> list[ObjectInfo]:
        """See `Storage.objects`."""
        ...

    def after(self, folder: str, name: str) -> list[ObjectInfo]:
        """See `Storage.after`."""
        ...

    def get(self, uri: str) -> Any:
        """See `Storage.get`."""
        ...

    def put_new(self, uri: str, data: bytes) -> None:
        """See `Storage.put_new`."""
        ...


class CompletionLog:
    """Reads a run's segments, each once, and folds them into bases."""

    def __init__(self, storage: Objects, prefix: str, check: Callable[[Segment], Segment]) -> None:
        """Name a log; nothing is read yet.

        Args:
            storage: Where.
            prefix: URI of the run's state, with a slash at its end.
            check: Takes away what does not count, of entries that were read just now.
        """
        self._storage = storage
        self._prefix = prefix
        self._folder = prefix + "completions/"
        self._check = check
        self._loads = [EMPTY]
        self._names: set[str] = set()
        """Of the segments that were read since the base."""
        self._newest = 0
        """The greatest number of a base that is there, sound or not."""
        self._folded: frozenset[str] = frozenset()
        """Names of the segments that the base holds."""
        self._told: set[str] = set()
        """Reasons that were logged."""

    def stored(self, since: str = "") -> Segment:
        """Return everything that is known now, in any order (see `Ledger.read`)."""
        self._catch_up(since)
        return joined(self._loads)

    def of_batch(self, batch: str) -> Segment:
        """Return what one batch has stored."""
        found = self._storage.objects(f"{self._folder}{batch}-")
        names = (info.uri.removeprefix(self._folder) for info in found if info.size <= MOST_PACKED)
        return unpack_segments(map(self._packed, names), self._check)

    def compact(self) -> None:
        """Write everything that is known as one object, so that the next reader reads one.

        A day of 8 workers that flush every 5 s leaves 138,000 segments: two minutes of reading.
        """
        if not self._names:
            self._catch_up()
        if not self._names:
            return  # Nothing, or nothing that is not folded already.
        whole, names, number = joined(self._loads), self._folded | self._names, self._newest + 1
        try:
            self._storage.put_new(self._base_uri(number), pack_base(whole, names))
        except AlreadyExistsError:
            self._catch_up()  # Somebody else folds, too: go on from there.
        else:
            self._newest = number
            self._take_base(whole, names)

    @property
    def uncompacted(self) -> int:
        """Segments that were read one by one."""
        return len(self._names)

    def _catch_up(self, since: str = "") -> None:
        """Read what is new."""
        if not since:
            self._read_base()
        listed = self._storage.after(self._folder, since)
        found = {info.uri.removeprefix(self._folder): info for info in listed}
        new = sorted(found.keys() - self._names - self._folded)
        if new:
            self._loads.append(self._read([(name, found[name].size) for name in new]))
            self._names |= set(new)

    def _read(self, listed: Sequence[tuple[str, int]]) -> Segment:
        """Read segments; what is none, or too large to be one, is not even fetched."""
        refused: Problems = {}
        sound = []
        for name, size in listed:
            if _SEGMENT.fullmatch(name) and size <= MOST_PACKED:
                sound.append((name, size))
            elif not _OLD_BASE.fullmatch(name):
                note(refused, "an object is no segment", 1, f"{name}, of {size:,} bytes")
        loads = [EMPTY, Segment(EMPTY.completions, EMPTY.failures, {}, refused)]
        with ThreadPoolExecutor(READERS) as pool:
            for block in _blocks(sound):
                loads.append(unpack_segments(pool.map(self._packed, block), self._check))
        whole = joined(loads)
        self._tell(whole.problems)
        return whole

    def _tell(self, problems: Problems) -> None:
        for reason, sentence in zip(problems, sentences(problems), strict=True):
            if reason not in self._told:
                self._told.add(reason)
                log.warning("%s: %s", self._prefix, sentence)

    def _packed(self, name: str) -> tuple[str, bytes]:
        return name, self._storage.get(self._folder + name).data

    def _read_base(self) -> None:
        """Go on from the newest base that is sound, if it is newer than what is known."""
        prefix = self._prefix + "folded/"
        names = (info.uri.removeprefix(prefix) for info in self._storage.objects(prefix))
        numbers = [int(found[1]) for name in names if (found := _BASE.fullmatch(name))]
        for number in sorted((n for n in numbers if n > self._newest), reverse=True):
            uri = self._base_uri(number)
            try:
                with reading(uri):
                    whole, folded = unpack_base(self._storage.get(uri).data)
            except StateError as error:
                # What it holds is in the segments, too: reading them takes longer, and that is all.
                log.warning("%s; the segments are read instead", error)
                continue
            # What else was read is read again: two that fold the same run at once are rare.
            self._take_base(self._check(whole), folded)
            break
        self._newest = max([self._newest, *numbers])

    def _base_uri(self, number: int) -> str:
        return f"{self._prefix}folded/base-{number:06d}.arrow"

    def _take_base(self, whole: Segment, names: frozenset[str]) -> None:
        """Go on from a base instead of the segments that it holds."""
        self._folded = names
        self._loads, self._names = [EMPTY, whole], set()


def _blocks(sized: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Cut segments into blocks that may be held at once."""
    block: list[str] = []
    total = 0
    for name, size in sized:
        if block and (len(block) == BLOCK or total + size > BLOCK_BYTES):
            yield block
            block, total = [], 0
        block.append(name)
        total += size
    if block:
        yield block
