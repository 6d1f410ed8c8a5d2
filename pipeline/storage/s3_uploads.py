"""Stage large outputs as multipart uploads at their final keys, which are completed at publish."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import groupby, islice
from posixpath import commonprefix
from typing import Any

from pipeline.concurrency import map_concurrently
from pipeline.errors import (
    InvalidUriError,
    ObjectChangedError,
    ObjectMissingError,
    ObjectRefusedError,
    PreconditionFailedError,
    StorageError,
    ThrottledError,
    TransientStorageError,
)
from pipeline.metrics import counted_here
from pipeline.storage.backend import ObjectStart, StagedObject
from pipeline.storage.s3_copies import CHECKS_PER_PAGE, is_copy
from pipeline.storage.s3_objects import PAGE, S3Objects
from pipeline.storage.s3_part_sender import PartSender
from pipeline.storage.s3_parts import completion_body, copy_parts
from pipeline.uris import Location, parse

log = logging.getLogger(__name__)

ONE_PART_BYTES = 64 << 20
"""Maximum size in bytes of an upload with one part, whose digest is that of the object."""
PART_BYTES = 32 << 20
"""Size of a part in bytes of larger ones: 10,000 parts reach 312 GiB. With 16 MiB, a thousand
workers send more parts than Amazon takes for one prefix: as simulated, a million outputs of 139 MB
take 70 minutes instead of 57, and cost a third more."""
MIN_COPY_BYTES = 5 << 20
"""Minimum size of a part that others follow.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""
COPY_PART_BYTES = 64 << 20
"""Minimum size of a copied part in bytes, if there are several: a server copies parts in parallel,
and at most 5 GiB at a time."""
MAX_COPY_BYTES = COPY_PART_BYTES * 9_000
"""Maximum size in bytes of what is copied, so that parts are left of the 10,000 of an upload."""
PARTS_AT_ONCE = 4
"""Number of parts of an upload in flight."""


def part_count(size: int) -> int:
    """Return the number of parts of an upload of some bytes."""
    return 1 if size <= ONE_PART_BYTES else -(-size // PART_BYTES)


def copied_spans(size: int) -> list[tuple[int, int]]:
    """Cut the first bytes of an object into half-open ranges of about the same size.

    Args:
        size: Number of bytes, at least MIN_COPY_BYTES.
    """
    count = max(1, size // COPY_PART_BYTES)
    return [(size * at // count, size * (at + 1) // count) for at in range(count)]


class Uploads:
    """Stages outputs as multipart uploads."""

    def __init__(self, s3: S3Objects) -> None:
        self._s3 = s3

    def stage(
        self, uri: str, data: memoryview, attempt: str, sha256: str | None = None
    ) -> StagedObject:
        """Begin an upload and send its parts."""
        upload = self._begin(uri, attempt)
        if part_count(len(data)) == 1:
            parts = [self._send(uri, upload, 1, data, sha256)]
        else:
            pieces = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]
            send = counted_here(lambda part: self._send(uri, upload, *part))
            parts = map_concurrently(send, enumerate(pieces, 1), PARTS_AT_ONCE)
        return StagedObject(uri, upload, tuple(parts), len(data), attempt)

    def extend(self, start: ObjectStart, tail: memoryview, uri: str, attempt: str) -> StagedObject:
        """Begin an upload; copy its first parts from a version of an object, send the others.

        Raises:
            ObjectChangedError: The object is another version.
        """
        upload = self._begin(uri, attempt)
        source, spans = start.info, copied_spans(start.size)
        at = parse(source.uri)
        origin = {
            "CopySource": {"Bucket": at.bucket, "Key": at.key},
            "CopySourceIfMatch": f'"{source.etag}"',
        }
        staged = StagedObject(uri, upload, (), start.size + len(tail), attempt)
        try:
            copied = copy_parts(self._s3, origin, uri, upload, spans)
            pieces = [tail[at : at + PART_BYTES] for at in range(0, len(tail), PART_BYTES)]
            send = counted_here(lambda part: self._send(uri, upload, *part))
            sent = map_concurrently(send, enumerate(pieces, len(spans) + 1), PARTS_AT_ONCE)
        except BaseException as error:
            with suppress(StorageError):
                self.abort([staged])
            if isinstance(error, PreconditionFailedError):
                raise ObjectChangedError(source.uri, source.etag, None) from error
            if isinstance(error, ObjectMissingError):
                self._s3.head(source.uri)  # Tells if that is what is missing.
            raise
        return replace(staged, parts=(*copied, *sent))

    def _begin(self, uri: str, attempt: str) -> str:
        """Begin an upload; return its id."""
        response = self._s3.send(
            "create_multipart_upload", uri, Metadata={"chunkmap-attempt": attempt}
        )
        return str(response["UploadId"])

    def _send(
        self, uri: str, upload: str, number: int, part: memoryview, sha256: str | None = None
    ) -> str:
        """Send a part, again after a transient error; return its ETag."""
        return self._s3.retry(lambda: self._sender.send(uri, upload, number, part, sha256))

    @cached_property
    def _sender(self) -> PartSender:
        return PartSender(self._s3)

    def find(self, staged: Sequence[StagedObject]) -> set[tuple[str, str]]:
        """Return URIs and ids of uploads that a few listings show; others may exist as well.

        At most one page is read per CHECKS_PER_PAGE uploads, as for copies.
        """
        found: set[tuple[str, str]] = set()
        uploads = [(at, item) for item in staged if not is_copy(item) and (at := _location(item))]
        for bucket, group in groupby(sorted(uploads, key=_order), key=lambda one: one[0].bucket):
            located = list(group)
            at = Location("s3", bucket, commonprefix([located[0][0].key, located[-1][0].key]))
            wanted = {(item.uri, item.upload) for _, item in located}
            # Without the right to list, or while the service is away: the checks tell.
            with suppress(StorageError):
                first, most = located[0][0].key, len(wanted) // CHECKS_PER_PAGE
                for page, _ in islice(self._pages(at, first), most):
                    found |= {(item.uri, item.upload) for item in page} & wanted
                    if wanted <= found:
                        break
        return found

    def check(self, item: StagedObject) -> None:
        """Raise ObjectMissingError if the upload does not exist."""
        self._s3.send("list_parts", item.uri, UploadId=item.upload, MaxParts=1)

    def complete(self, item: StagedObject) -> None:
        """Complete the upload. Raises ObjectMissingError."""
        try:
            self._s3.send(
                "complete_multipart_upload",
                item.uri,
                UploadId=item.upload,
                MultipartUpload=completion_body(item.parts),
            )
        except TransientStorageError as error:
            if error.status >= 500 and not isinstance(error, ThrottledError):
                # Some servers return an internal error for a missing upload, e.g. Ceph: "this
                # multipart completion is already in progress".
                self.check(item)
            raise

    def abort(self, staged: Sequence[StagedObject]) -> None:
        """Abort uploads; missing or impossible uploads are no error."""

        def drop(item: StagedObject) -> None:
            with suppress(ObjectMissingError, ObjectRefusedError, InvalidUriError):
                self._s3.send("abort_multipart_upload", item.uri, UploadId=item.upload)

        self._s3.each(drop, staged)

    def under(self, prefix: str) -> Iterator[StagedObject]:
        """Yield the uploads whose keys start with the prefix."""
        at, count = parse(prefix), 0
        for page, is_stuck in self._pages(at):
            count += len(page)
            yield from page
            if is_stuck:
                log.warning(
                    "%s: the server does not list more than %s of its unfinished uploads; abort "
                    "these, then list again",
                    at.uri,
                    f"{count:,}",
                )

    def _pages(self, at: Location, first: str = "") -> Iterator[tuple[list[StagedObject], bool]]:
        """Yield the uploads of each page of a listing, and whether the server lists no further.

        Args:
            at: The prefix.
            first: Smallest key that is wanted: after one page, those before it are skipped.
        """
        listed: set[tuple[str, str]] = set()
        markers: dict[str, str] = {}
        while True:
            page = self._s3.wait(self._page(at, markers))
            found = {(item.uri, item.upload): item for item in _uploads_of(at, page)}
            new = [item for name, item in found.items() if name not in listed]
            listed |= found.keys()
            # Exactly the markers of the server: SeaweedFS pages by upload ids alone, and would
            # list only the key of a key marker.
            after = {
                name: page[f"Next{name}"]
                for name in ("KeyMarker", "UploadIdMarker")
                if page.get(f"Next{name}")
            }
            if "KeyMarker" in after and after["KeyMarker"] < first[:-1]:
                after = {"KeyMarker": first[:-1]}
            is_cut = bool(page.get("IsTruncated"))
            is_stuck = is_cut and (after == markers or bool(markers and not new))
            yield new, is_stuck
            if is_stuck or not is_cut:
                return
            markers = after

    async def _page(self, at: Location, markers: Mapping[str, str]) -> Any:
        client = await self._s3.client(at.bucket)
        async with self._s3.requests.sending("list uploads", at.uri):
            return await client.list_multipart_uploads(
                Bucket=at.bucket, Prefix=at.key, MaxUploads=PAGE, **markers
            )


def _uploads_of(at: Location, page: Mapping[str, Any]) -> Iterator[StagedObject]:
    """Yield the uploads of a page whose keys start with that of a location."""
    for entry in page.get("Uploads", ()):
        key = str(entry["Key"])
        if key.startswith(at.key):
            yield StagedObject(
                uri=f"s3://{at.bucket}/{key}",
                upload=str(entry["UploadId"]),
                parts=(),
                size=0,
                attempt="",
                created=entry["Initiated"].timestamp(),
            )


def _order(one: tuple[Location, StagedObject]) -> tuple[str, str]:
    return one[0].bucket, one[0].key


def _location(item: StagedObject) -> Location | None:
    """Return where an upload becomes visible; None if no object can have its name."""
    try:
        return parse(item.uri)
    except InvalidUriError:
        return None
