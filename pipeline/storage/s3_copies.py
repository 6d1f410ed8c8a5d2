"""Small staged outputs: objects of their own in an area, copied to their final keys at publish.

A copy's source is `<area><final key>.<attempt>`, so that a listing of the area tells what is staged
for which keys. Publishing copies, then removes the sources; both before the pointer moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import groupby

import obstore

from pipeline.errors import InvalidUriError, ObjectRefusedError
from pipeline.storage.backend import StagedObject
from pipeline.storage.s3_objects import S3Objects, spellable
from pipeline.uris import Location, parse

MOST_KEY_BYTES = 1024
"""S3's limit for a key's length in UTF-8."""


def is_copy(item: StagedObject) -> bool:
    """Whether something is staged in this way: then its token is a URI."""
    return item.upload.startswith("s3://")


class Copies:
    """What is staged as objects of their own."""

    def __init__(self, s3: S3Objects) -> None:
        self._s3 = s3

    def can(self, uri: str, attempt: str, area: str) -> bool:
        """Whether an output can be staged in this way."""
        at, source = parse(uri), parse(source_of(uri, attempt, area))
        return (
            at.bucket == source.bucket
            and spellable(at.key)
            and spellable(source.key)
            and len(source.key.encode()) <= MOST_KEY_BYTES
        )

    def stage(self, uri: str, data: memoryview, attempt: str, area: str) -> StagedObject:
        """Write the source. The copy will carry its metadata, by which it is known as ours."""
        source = source_of(uri, attempt, area)
        at = parse(source)
        with self._s3.requests.sent("put", source):
            said = obstore.put(
                self._s3.store(at.bucket),
                at.key,
                data,
                attributes={"chunkmap-attempt": attempt},
                use_multipart=False,
            )
        return StagedObject(uri, source, (str(said["e_tag"]).strip('"'),), len(data), attempt)

    async def look(self, item: StagedObject) -> None:
        """Raise ObjectMissingError if it is not there."""
        at = parse(item.upload)
        async with self._s3.requests.sending("head", item.upload):
            await obstore.head_async(self._s3.store(at.bucket), at.key)

    async def show(self, item: StagedObject) -> None:
        """Copy it to its final key. Raises ObjectMissingError."""
        at, source = parse(item.uri), parse(item.upload)
        async with self._s3.requests.sending("copy", item.uri):
            await obstore.copy_async(self._s3.store(at.bucket), source.key, at.key)

    def drop(self, staged: Sequence[StagedObject]) -> None:
        """Remove sources, a thousand per request; one that is absent or impossible is no error."""
        sources = [at for item in staged if is_copy(item) and (at := _named(item)) is not None]
        for bucket, group in groupby(sources, key=lambda at: at.bucket):
            keys = [at.key for at in group]
            try:
                self._delete(bucket, keys)
            except ObjectRefusedError:
                # One key that the server refuses must not keep the others.
                for key in keys:
                    with suppress(ObjectRefusedError):
                        self._delete(bucket, [key])

    def _delete(self, bucket: str, keys: list[str]) -> None:
        with self._s3.requests.sent("delete_objects", f"s3://{bucket}/"):
            obstore.delete(self._s3.store(bucket), keys)

    def under(self, prefix: str, area: str) -> Iterator[StagedObject]:
        """Those of keys that start with the prefix."""
        at, folder = parse(prefix), parse(area)
        if not spellable(folder.key.rstrip("/")):
            return
        for key, size, modified in self._listed(folder):
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

    def _listed(self, folder: Location) -> Iterator[tuple[str, int, datetime]]:
        """Keys in a folder, with sizes and times."""
        if self._s3.lists_exactly:
            for entry in self._s3.entries(folder, ""):
                yield entry["Key"], entry["Size"], entry["LastModified"]
            return
        with self._s3.requests.sent("list", folder.uri):
            found = obstore.list(self._s3.store(folder.bucket), folder.key, chunk_size=1000)
            entries = [meta for page in found for meta in page]
        for meta in entries:
            yield meta["path"], meta["size"], meta["last_modified"]


def _named(item: StagedObject) -> Location | None:
    """Where a source is; None if no object can be there."""
    try:
        at = parse(item.upload)
    except InvalidUriError:
        return None
    return at if spellable(at.key) else None


def source_of(uri: str, attempt: str, area: str) -> str:
    """The object that an output is copied from."""
    return f"{area}{parse(uri).key}.{attempt}"
