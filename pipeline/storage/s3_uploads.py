"""Stage large outputs as multipart uploads at their final keys, which are completed at publish."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from pipeline.concurrency import map_concurrently
from pipeline.errors import (
    InvalidUriError,
    ObjectMissingError,
    ObjectRefusedError,
    ThrottledError,
    TransientStorageError,
)
from pipeline.metrics import counted_here, current_tally
from pipeline.storage.backend import StagedObject
from pipeline.storage.s3_objects import PAGE, S3Objects
from pipeline.storage.s3_part_sender import PartSender
from pipeline.storage.s3_parts import completion_body
from pipeline.uris import Location, parse

log = logging.getLogger(__name__)

ONE_PART_BYTES = 64 << 20
"""Maximum size in bytes of an upload with one part, whose digest is that of the object."""
PART_BYTES = 16 << 20
"""Size of a part in bytes of larger ones: 10,000 parts reach 156 GiB."""
PARTS_AT_ONCE = 4
"""Number of parts of an upload in flight."""


def part_count(size: int) -> int:
    """Return the number of parts of an upload of some bytes."""
    return 1 if size <= ONE_PART_BYTES else -(-size // PART_BYTES)


class Uploads:
    """Stages outputs as multipart uploads."""

    def __init__(self, s3: S3Objects) -> None:
        self._s3 = s3

    def stage(
        self, uri: str, data: memoryview, attempt: str, sha256: str | None = None
    ) -> StagedObject:
        """Begin an upload and send its parts."""
        response = self._s3.wait(
            self._s3.request("create_multipart_upload", uri, Metadata={"chunkmap-attempt": attempt})
        )
        upload = str(response["UploadId"])
        if part_count(len(data)) == 1:
            parts = [self._send(uri, upload, 1, data, sha256)]
        else:
            pieces = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]
            send = counted_here(lambda part: self._send(uri, upload, *part))
            parts = map_concurrently(send, enumerate(pieces, 1), PARTS_AT_ONCE)
        return StagedObject(uri, upload, tuple(parts), len(data), attempt)

    def _send(
        self, uri: str, upload: str, number: int, part: memoryview, sha256: str | None = None
    ) -> str:
        """Send a part, again after a transient error; return its ETag."""
        return self._s3.policy.call(
            lambda: self._sender.send(uri, upload, number, part, sha256), current_tally().add_retry
        )

    @cached_property
    def _sender(self) -> PartSender:
        return PartSender(self._s3)

    async def check(self, item: StagedObject) -> None:
        """Raise ObjectMissingError if the upload does not exist."""
        await self._s3.request("list_parts", item.uri, UploadId=item.upload, MaxParts=1)

    async def complete(self, item: StagedObject) -> None:
        """Complete the upload. Raises ObjectMissingError."""
        try:
            await self._s3.request(
                "complete_multipart_upload",
                item.uri,
                UploadId=item.upload,
                MultipartUpload=completion_body(item.parts),
            )
        except TransientStorageError as error:
            if error.status >= 500 and not isinstance(error, ThrottledError):
                # Some servers return an internal error for a missing upload, e.g. Ceph: "this
                # multipart completion is already in progress".
                await self.check(item)
            raise

    def abort(self, staged: Sequence[StagedObject]) -> None:
        """Abort uploads; missing or impossible uploads are no error."""

        async def drop(item: StagedObject) -> None:
            with suppress(ObjectMissingError, ObjectRefusedError, InvalidUriError):
                await self._s3.request("abort_multipart_upload", item.uri, UploadId=item.upload)

        self._s3.wait(self._s3.gather(drop, staged))

    def under(self, prefix: str) -> Iterator[StagedObject]:
        """Yield the uploads whose keys start with the prefix."""
        at = parse(prefix)
        listed: set[tuple[str, str]] = set()
        markers: dict[str, str] = {}
        while True:
            page = self._s3.wait(self._page(at, markers))
            before = len(listed)
            for entry in page.get("Uploads", ()):
                name = (str(entry["Key"]), str(entry["UploadId"]))
                if name in listed or not name[0].startswith(at.key):
                    continue
                listed.add(name)
                yield StagedObject(
                    uri=f"s3://{at.bucket}/{name[0]}",
                    upload=name[1],
                    parts=(),
                    size=0,
                    attempt="",
                    created=entry["Initiated"].timestamp(),
                )
            if not page.get("IsTruncated"):
                return
            # Exactly the markers of the server: SeaweedFS pages by upload ids alone, and would
            # list only the key of a key marker.
            after = {
                name: page[f"Next{name}"]
                for name in ("KeyMarker", "UploadIdMarker")
                if page.get(f"Next{name}")
            }
            if after == markers or (markers and len(listed) == before):
                log.warning(
                    "%s: the server does not list more than %s of its unfinished uploads; abort "
                    "these, then list again",
                    at.uri,
                    f"{len(listed):,}",
                )
                return
            markers = after

    async def _page(self, at: Location, markers: Mapping[str, str]) -> Any:
        client = await self._s3.client(at.bucket)
        async with self._s3.requests.sending("list uploads", at.uri):
            return await client.list_multipart_uploads(
                Bucket=at.bucket, Prefix=at.key, MaxUploads=PAGE, **markers
            )
