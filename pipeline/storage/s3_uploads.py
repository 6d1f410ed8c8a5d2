"""Large staged outputs: multipart uploads at their final keys, completed only at publish."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from pipeline.errors import ObjectMissingError
from pipeline.storage.records import Staged
from pipeline.storage.s3 import S3Objects, listed
from pipeline.storage.uris import parse

PART_BYTES = 16 << 20
"""Size of an upload's parts: 10,000 of them reach 156 GiB, and four in flight stay small."""


class Uploads:
    """What is staged as multipart uploads."""

    def __init__(self, s3: S3Objects) -> None:
        self._s3 = s3

    async def stage(self, uri: str, data: memoryview, attempt: str) -> Staged:
        """Begin an upload and send its parts."""
        said = await self._s3.request(
            "create_multipart_upload", uri, Metadata={"chunkmap-attempt": attempt}
        )
        upload = said["UploadId"]
        gate = asyncio.Semaphore(4)

        async def send(number: int, start: int) -> str:
            async with gate:
                done = await self._s3.patiently(
                    lambda: self._s3.request(
                        "upload_part",
                        uri,
                        UploadId=upload,
                        PartNumber=number,
                        Body=bytes(data[start : start + PART_BYTES]),
                    )
                )
            return str(done["ETag"]).strip('"')

        starts = range(0, max(len(data), 1), PART_BYTES)
        parts = await asyncio.gather(*(send(n, start) for n, start in enumerate(starts, 1)))
        return Staged(uri, upload, tuple(parts), len(data), attempt)

    async def look(self, item: Staged) -> None:
        """Raise ObjectMissingError if it is not there."""
        await self._s3.request("list_parts", item.uri, UploadId=item.upload, MaxParts=1)

    async def show(self, item: Staged) -> None:
        """Complete it. Raises ObjectMissingError."""
        await self._s3.request(
            "complete_multipart_upload",
            item.uri,
            UploadId=item.upload,
            MultipartUpload=listed(item.parts),
        )

    def abort(self, staged: Sequence[Staged]) -> None:
        """Abort; what is already gone is no error."""

        async def drop(item: Staged) -> None:
            with suppress(ObjectMissingError):
                await self._s3.request("abort_multipart_upload", item.uri, UploadId=item.upload)

        self._s3.wait(self._s3.gather(drop, staged))

    def under(self, prefix: str) -> Iterator[Staged]:
        """Those of keys below a prefix. It must be narrow: servers page uploads wrongly."""
        at = parse(prefix)

        async def page() -> Any:
            client = await self._s3.client(at.bucket)
            async with self._s3.requests.sending("list uploads", prefix):
                return await client.list_multipart_uploads(Bucket=at.bucket, Prefix=at.key)

        for entry in self._s3.wait(page()).get("Uploads", ()):
            yield Staged(
                uri=f"s3://{at.bucket}/{entry['Key']}",
                upload=entry["UploadId"],
                parts=(),
                size=0,
                attempt="",
                created=entry["Initiated"].timestamp(),
            )
