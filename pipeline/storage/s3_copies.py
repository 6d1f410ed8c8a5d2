"""Stage small outputs as objects in an area, which are copied to their final keys at publish.

The source of a copy is `<area><final key>.<attempt>`, so that a listing of the area returns the
staged outputs by key. Publishing copies, then deletes the sources; both before the pointer moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import groupby, islice
from posixpath import commonprefix

import obstore

from pipeline.errors import InvalidUriError, ObjectRefusedError, StorageError
from pipeline.storage.backend import StagedObject
from pipeline.storage.s3_objects import S3Objects, spellable
from pipeline.uris import Location, parse

CHECKS_PER_PAGE = 32
"""Number of staged outputs for which a page of a listing is read, instead of a check each."""
PAGE_KEYS = 1000
"""Number of keys in a page of a listing."""
DELETED_KEYS = 250
"""Number of keys in a request that deletes. A service may delete them one after the other: several
requests of fewer keys than the most, a thousand, take less time."""
MAX_KEY_BYTES = 1024
"""Maximum length of an S3 key, in bytes of UTF-8."""


def is_copy(item: StagedObject) -> bool:
    """Whether an output is staged in this way: then its token is a URI."""
    return item.upload.startswith("s3://")


class Copies:
    """Stages outputs as separate objects."""

    def __init__(self, s3: S3Objects) -> None:
        self._s3 = s3

    def can(self, uri: str, attempt: str, area: str) -> bool:
        """Whether an output can be staged in this way."""
        at, source = parse(uri), parse(source_of(uri, attempt, area))
        return (
            at.bucket == source.bucket
            and spellable(at.key)
            and spellable(source.key)
            and len(source.key.encode()) <= MAX_KEY_BYTES
        )

    def stage(self, uri: str, data: memoryview, attempt: str, area: str) -> StagedObject:
        """Write the source. The copy inherits its metadata, which identifies the attempt."""
        source = source_of(uri, attempt, area)
        at = parse(source)
        with self._s3.requests.sent("put", source):
            result = obstore.put(
                self._s3.store(at.bucket),
                at.key,
                data,
                attributes={"chunkmap-attempt": attempt},
                use_multipart=False,
            )
        return StagedObject(uri, source, (str(result["e_tag"]).strip('"'),), len(data), attempt)

    def check(self, item: StagedObject) -> None:
        """Raise ObjectMissingError if the source does not exist."""
        at = parse(item.upload)
        with self._s3.requests.sent("head", item.upload):
            obstore.head(self._s3.store(at.bucket), at.key)

    def find(self, staged: Sequence[StagedObject]) -> set[str]:
        """Return tokens whose sources a few listings show; whether others exist is not known.

        A listing costs about as much as a few checks, and shows a thousand sources. Where other
        objects lie between them it is given up: at most one page is read per CHECKS_PER_PAGE.
        """
        found: set[str] = set()
        copies = [at for item in staged if is_copy(item) and (at := _location(item)) is not None]
        for bucket, group in groupby(sorted(copies, key=_order), key=lambda at: at.bucket):
            keys = [at.key for at in group]
            if len(keys) < CHECKS_PER_PAGE:
                continue
            # Without the right to list, or while the service is away: the checks tell.
            with suppress(StorageError):
                found.update(f"s3://{bucket}/{key}" for key in self._find(bucket, keys))
        return found

    def _find(self, bucket: str, keys: list[str]) -> Iterator[str]:
        """Yield those of some sorted keys that exist, as far as few listings show them."""
        wanted = set(keys)
        at = Location("s3", bucket, commonprefix([keys[0], keys[-1]]))
        # The listing starts after a key, so it starts before the first.
        entries = self._s3.entries(at, keys[0][:-1])
        for entry in islice(entries, PAGE_KEYS * (len(keys) // CHECKS_PER_PAGE)):
            if entry["Key"] > keys[-1]:
                return
            if entry["Key"] in wanted:
                yield entry["Key"]

    def complete(self, item: StagedObject) -> None:
        """Copy the source to its final key. Raises ObjectMissingError."""
        at, source = parse(item.uri), parse(item.upload)
        with self._s3.requests.sent("copy", item.uri):
            obstore.copy(self._s3.store(at.bucket), source.key, at.key)

    def drop(self, staged: Sequence[StagedObject]) -> None:
        """Delete sources, many per request; missing or impossible sources are no error."""
        sources = [at for item in staged if is_copy(item) and (at := _location(item)) is not None]
        for bucket, group in groupby(sources, key=lambda at: at.bucket):
            keys = [at.key for at in group]
            starts = range(0, len(keys), DELETED_KEYS)
            parts = [keys[start : start + DELETED_KEYS] for start in starts]
            self._s3.each(partial(self._delete_all, bucket), parts)

    def _delete_all(self, bucket: str, keys: list[str]) -> None:
        try:
            self._delete(bucket, keys)
        except ObjectRefusedError:
            # A key that the server refuses must not prevent the others' deletion.
            for key in keys:
                with suppress(ObjectRefusedError):
                    self._delete(bucket, [key])

    def _delete(self, bucket: str, keys: list[str]) -> None:
        with self._s3.requests.sent("delete_objects", f"s3://{bucket}/"):
            obstore.delete(self._s3.store(bucket), keys)

    def under(self, prefix: str, area: str) -> Iterator[StagedObject]:
        """Yield the staged outputs whose keys start with the prefix."""
        at, folder = parse(prefix), parse(area)
        if not spellable(folder.key.rstrip("/")):
            return
        for key, size, modified in self._list(folder):
            final, _, attempt = key.removeprefix(folder.key).rpartition(".")
            if final.startswith(at.key):
                yield StagedObject(
                    uri=f"s3://{folder.bucket}/{final}",
                    upload=f"s3://{folder.bucket}/{key}",
                    parts=(),
                    size=size,
                    attempt=attempt,
                    created=modified.timestamp(),
                )

    def _list(self, folder: Location) -> Iterator[tuple[str, int, datetime]]:
        """Yield keys in a folder, with sizes and times."""
        if self._s3.lists_exactly:
            for entry in self._s3.entries(folder, ""):
                yield entry["Key"], entry["Size"], entry["LastModified"]
            return
        with self._s3.requests.sent("list", folder.uri):
            pages = obstore.list(self._s3.store(folder.bucket), folder.key, chunk_size=1000)
            entries = [meta for page in pages for meta in page]
        for meta in entries:
            yield meta["path"], meta["size"], meta["last_modified"]


def _order(at: Location) -> tuple[str, str]:
    return at.bucket, at.key


def _location(item: StagedObject) -> Location | None:
    """Return the location of a source; None if no object can have its name."""
    try:
        at = parse(item.upload)
    except InvalidUriError:
        return None
    return at if spellable(at.key) else None


def source_of(uri: str, attempt: str, area: str) -> str:
    """Return the URI of the object that an output is copied from."""
    return f"{area}{parse(uri).key}.{attempt}"
