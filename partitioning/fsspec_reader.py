"""Read from any fsspec filesystem, with threads."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime
from typing import Any, Final, TypeVar

from partitioning.model import ObjectInfo
from partitioning.reader import Reader, Tail, TailRequest

T = TypeVar("T")

_ATTEMPTS: Final = 4
_FIRST_PAUSE: Final = 0.1
"""Seconds before the first retry; doubled for each attempt, with jitter."""
_PERMANENT: Final = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)


class FsspecReader(Reader):
    """Reads through an fsspec filesystem: `FsspecReader(fsspec.filesystem("s3"))`.

    A read is checked against the listed version, if the filesystem has versions: on S3 with
    If-Match, elsewhere by another look-up after the read. URIs are `<protocol>://<path>`; for local
    files `file:///path`.
    """

    def __init__(self, fs: Any, *, pause: Callable[[float], None] = time.sleep) -> None:
        """Wrap a filesystem.

        Args:
            fs: The filesystem, which is used synchronously.
            pause: Function that waits for some seconds between attempts.
        """
        self._fs = fs
        self._pause = pause
        protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
        self._scheme = {"local": "file", "s3a": "s3"}.get(protocol, protocol)

    def list(self, uri_prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects below the prefix, which may end within a name."""
        path = self._path(uri_prefix)
        root = path if uri_prefix.endswith("/") else path.rpartition("/")[0]
        try:
            entries = self._fs.find(root, detail=True, **self._no_cache())
        except FileNotFoundError:
            return
        for name, entry in entries.items():
            info = self._info(name, entry)
            if entry.get("type") != "directory" and info.uri.startswith(uri_prefix):
                yield info

    def head(self, uri: str) -> ObjectInfo:
        """Return the version and size of an object.

        Raises:
            FileNotFoundError: There is no such object, or it is a directory.
        """
        info = self._retry(lambda: self._fs.info(self._path(uri), **self._no_cache(info=True)))
        if info.get("type") == "directory":
            raise FileNotFoundError(uri)
        return self._info(info["name"], info)

    def read_tails(self, requests: Iterable[TailRequest], concurrency: int) -> Iterator[Tail]:
        """Read many tails with threads, at most `concurrency` in flight."""
        queue = iter(requests)
        pending: set[Future[Tail]] = set()
        with ThreadPoolExecutor(concurrency) as pool:
            try:
                while True:
                    while len(pending) < concurrency and (request := next(queue, None)):
                        pending.add(pool.submit(self._tail, request))
                    if not pending:
                        return
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            finally:
                for future in pending:
                    future.cancel()

    def _tail(self, request: TailRequest) -> Tail:
        info = request.object
        try:
            data = self._retry(lambda: self._suffix(info, min(request.length, info.size)))
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EINVAL:
                return Tail(info, None, f"replaced since it was listed with ETag {info.etag}")
            return Tail(info, None, f"{type(error).__name__}: {error}")
        if len(data) != min(request.length, info.size):
            return Tail(info, None, f"read {len(data)} bytes of {request.length}: it has changed")
        return Tail(info, data)

    def _suffix(self, info: ObjectInfo, length: int) -> bytes:
        path = self._path(info.uri)
        if self._scheme == "s3":
            bucket, _, key = path.partition("/")
            reply = self._fs.call_s3(
                "get_object", Bucket=bucket, Key=key, Range=f"bytes=-{length}", IfMatch=info.etag
            )
            return bytes(self._body(reply))
        data = bytes(self._fs.cat_file(path, start=info.size - length, end=info.size))
        now = self.head(info.uri)
        if (now.etag, now.size) != (info.etag, info.size):
            raise FileNotFoundError(
                f"replaced since it was listed: {info.etag} ({info.size} bytes) is now "
                f"{now.etag} ({now.size} bytes)"
            )
        return data

    def _body(self, reply: Any) -> Any:
        from fsspec.asyn import sync

        async def read() -> Any:
            async with reply["Body"] as stream:
                return await stream.read()

        return sync(self._fs.loop, read)

    def _retry(self, call: Callable[[], T]) -> T:
        for attempt in range(1, _ATTEMPTS):
            try:
                return call()
            except _PERMANENT:
                raise
            except OSError as error:
                if error.errno == errno.EINVAL:  # s3fs's error for a failed condition.
                    raise
                # Jitter keeps threads from retrying at the same time.
                self._pause(_FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.0))
        return call()

    def _no_cache(self, *, info: bool = False) -> dict[str, Any]:
        # By default s3fs uses its cache of listings.
        if self._scheme != "s3":
            return {}
        return {"refresh": True} if info else {"refresh": True, "withdirs": False}

    def _path(self, uri: str) -> str:
        path = uri.partition("://")[2]
        # fsspec's own parsing would strip `?` and `#`. Memory paths begin with a slash.
        return "/" + path.lstrip("/") if self._scheme == "memory" else path

    def _info(self, name: str, info: dict[str, Any]) -> ObjectInfo:
        path = name.lstrip("/") if self._scheme == "memory" else name
        return ObjectInfo(f"{self._scheme}://{path}", self._version(info), int(info["size"] or 0))

    def _version(self, info: dict[str, Any]) -> str:
        for key in ("ETag", "etag", "md5", "generation"):
            if info.get(key):
                return str(info[key])
        moments = (info.get(key) for key in ("mtime", "last_modified", "modified", "created"))
        moment = next((m for m in moments if m is not None), "")
        # The memory filesystem has seconds in a listing, and a datetime for a single object.
        moment = moment.timestamp() if isinstance(moment, datetime) else moment
        return f"{info.get('ino', '')}-{moment}"
