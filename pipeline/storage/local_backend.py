"""Read and write local files, with the same guarantees as S3 on the file system of one machine."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from typing_extensions import override

from partitioning import ObjectInfo
from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    InvalidUriError,
    ObjectChangedError,
    ObjectMissingError,
    ObjectRefusedError,
    PreconditionFailedError,
    StateError,
    StorageError,
)
from pipeline.storage.backend import Backend, Blob, ObjectStart, StagedObject
from pipeline.storage.s3_errors import translating
from pipeline.storage.tokens import TokenRule
from pipeline.uris import parse

log = logging.getLogger(__name__)


def _path(uri: str) -> Path:
    return Path(parse(uri).key)


_SCRATCH_SUFFIX = ".chunkmap~"
"""Suffix of locks and half-written files, which listings leave out."""
COPY_BYTES = 4 << 20
"""Bytes that are copied at a time between file systems that cannot copy to each other."""


def _etag(status: os.stat_result) -> str:
    # A rewrite changes the inode or the time; a truncation changes the size.
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _scratch(path: Path, mark: str) -> Path:
    """Return the path of a scratch file next to a file, on the same file system."""
    return path.with_name(f".{path.name}.{mark}{_SCRATCH_SUFFIX}")


def _temporary(uri: str, area: str) -> str:
    return str(Path(f"{_path(area)}{_path(uri)}"))


def _require_staged(item: StagedObject) -> None:
    """Raise FileNotFoundError unless the staged file exists. Links are never staged.

    Raises:
        StateError: See `_refuse_links`.
    """
    _refuse_links(item.upload)
    if not stat.S_ISREG(os.lstat(item.upload).st_mode):
        raise FileNotFoundError(errno.ENOENT, "nothing is staged", item.upload)


def _refuse_links(path: str) -> None:
    """Refuse a path that leads out of a folder of state, where chunkmap never makes links.

    Raises:
        StateError: A folder of the path below `<output>.chunkmap/` is a symbolic link.
    """
    parts = path.split("/")
    state = next((n for n, part in enumerate(parts) if part.endswith(".chunkmap")), len(parts))
    for end in range(state + 2, len(parts)):
        folder = "/".join(parts[:end])
        if os.path.islink(folder):
            raise StateError(
                f"file://{folder}",
                "it is a symbolic link, and files deleted in it would be deleted elsewhere",
                hint="find out what created the link, and remove it",
            )


def _copy_start(source: int, target: int, size: int) -> None:
    """Copy the first bytes of an open file to the start of another."""
    copied = 0
    while copied < size:
        try:
            count = os.copy_file_range(source, target, size - copied, copied, copied)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            # The file systems cannot copy to each other.
            data = os.pread(source, min(size - copied, COPY_BYTES), copied)
            count = os.pwrite(target, data, copied)
        if not count:
            return  # The file was cut short, which its version shows.
        copied += count


class LocalBackend(Backend):
    """Files below `file://` URIs."""

    @override
    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        at = parse(prefix).key
        _refuse_links(at)
        for folder, _, names in os.walk(os.path.dirname(at)):
            for name in names:
                path = os.path.join(folder, name)
                if path.startswith(at) and not name.endswith(_SCRATCH_SUFFIX):
                    # A file may be deleted during the listing.
                    with suppress(ObjectMissingError):
                        yield self.head(f"file://{path}")

    @override
    def after(self, folder: str, name: str) -> Iterator[ObjectInfo]:
        for info in self.objects(folder):
            rest = info.uri.removeprefix(folder)
            if rest > name and "/" not in rest:
                yield info

    @override
    def head(self, uri: str) -> ObjectInfo:
        with translating("head", uri):
            status = _path(uri).stat()
            if stat.S_ISDIR(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "a folder is not an object", uri)
        return ObjectInfo(uri, _etag(status), status.st_size)

    @override
    def get(self, uri: str) -> Blob:
        with translating("get", uri), _path(uri).open("rb") as file:
            etag = _etag(os.fstat(file.fileno()))
            return Blob(file.read(), etag)

    @override
    def get_ranges(self, info: ObjectInfo, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Keep the file open, so that versions cannot mix."""
        with translating("get", info.uri), _path(info.uri).open("rb") as file:
            data = [memoryview(os.pread(file.fileno(), b - a, a)) for a, b in ranges]
            now = _etag(os.fstat(file.fileno()))
        if now != info.etag:
            raise ObjectChangedError(info.uri, info.etag, now)
        return data

    @override
    def put(self, uri: str, data: bytes) -> None:
        with translating("put", uri):
            os.replace(self._write_scratch(uri, data), _path(uri))

    @override
    def put_new(self, uri: str, data: bytes) -> None:
        """Hard-link a complete file, which fails if the name exists."""
        with translating("put", uri):
            temporary = self._write_scratch(uri, data)
            try:
                os.link(temporary, _path(uri))
            except FileExistsError as error:
                raise AlreadyExistsError(uri) from error
            finally:
                temporary.unlink()

    @override
    def put_if(self, uri: str, data: bytes, etag: str) -> None:
        """Compare and rename under a lock between processes."""
        with self._lock(uri):
            if self.head(uri).etag != etag:
                raise PreconditionFailedError(uri)
            self.put(uri, data)

    @contextmanager
    def _lock(self, uri: str) -> Iterator[None]:
        path = _path(uri)
        with translating("lock", uri), _scratch(path, "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _write_scratch(self, uri: str, data: bytes | memoryview) -> Path:
        path = _path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _scratch(path, uuid.uuid4().hex)
        temporary.write_bytes(data)
        # The kernel's time stamps have a resolution of milliseconds, and inodes are reused: a file
        # that is replaced twice in a row could have the version mark of the first version.
        now = time.time_ns()
        os.utime(temporary, ns=(now, now))
        return temporary

    @override
    def copy(self, source: str, target: str) -> None:
        with translating("copy", source):
            path = _path(target)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = _scratch(path, uuid.uuid4().hex)
            shutil.copyfile(_path(source), temporary)
            os.replace(temporary, path)

    @override
    def delete(self, uri: str) -> None:
        _refuse_links(parse(uri).key)
        with translating("delete", uri):
            _path(uri).unlink(missing_ok=True)

    @override
    def stage(
        self, uri: str, data: memoryview, attempt: str, area: str, sha256: str | None = None
    ) -> StagedObject:
        """Write a temporary file, on the file system of the output."""
        temporary = Path(f"{_temporary(uri, area)}.{attempt}")
        with translating("stage", uri):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            etag = _etag(temporary.stat())
        return StagedObject(uri, str(temporary), (etag,), len(data), attempt)

    @override
    def can_extend(self, source: str, uri: str, size: int) -> bool:
        return True

    @override
    def extend(
        self, start: ObjectStart, tail: memoryview, uri: str, attempt: str, area: str
    ) -> StagedObject:
        """Let the kernel copy; file systems with copy on write share the blocks."""
        temporary = Path(f"{_temporary(uri, area)}.{attempt}")
        source, size = start.info, start.size
        with translating("get", source.uri), _path(source.uri).open("rb") as origin:
            with translating("stage", uri):
                temporary.parent.mkdir(parents=True, exist_ok=True)
                with temporary.open("wb") as file:
                    _copy_start(origin.fileno(), file.fileno(), size)
                    file.seek(size)
                    file.write(tail)
                etag = _etag(temporary.stat())
            now = _etag(os.fstat(origin.fileno()))
        if now != source.etag:
            temporary.unlink()
            raise ObjectChangedError(source.uri, source.etag, now)
        return StagedObject(uri, str(temporary), (etag,), size + len(tail), attempt)

    @override
    def missing(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        return self._find_vanished(self._check, staged)

    @override
    def complete(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        return self._find_vanished(self._complete, staged)

    def _check(self, item: StagedObject) -> None:
        with translating("stat", item.uri):
            _require_staged(item)

    def _complete(self, item: StagedObject) -> None:
        with translating("rename", item.uri):
            _require_staged(item)
            path = _path(item.uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(item.upload, path)

    def _find_vanished(
        self, act: Callable[[StagedObject], None], staged: Sequence[StagedObject]
    ) -> list[StagedObject]:
        """Call a function for all items; return those that are neither staged nor visible.

        Paths that the file system refuses are included. A missing permission or a full disk is
        raised after all items have been processed.
        """
        vanished, errors = [], []
        for item in staged:
            try:
                act(item)
            except (ObjectMissingError, ObjectRefusedError, InvalidUriError) as error:
                if self._is_ours(item):
                    continue
                if not isinstance(error, ObjectMissingError):
                    log.warning("a staged output can never be published: %s", error)
                vanished.append(item)
            except StorageError as error:
                errors.append(error)
        if errors:
            raise min(errors, key=lambda error: not isinstance(error, AccessDeniedError))
        return vanished

    def _is_ours(self, item: StagedObject) -> bool:
        # Renaming changes neither the inode nor the time.
        try:
            return (self.head(item.uri).etag,) == item.parts
        except (ObjectMissingError, ObjectRefusedError, InvalidUriError):
            return False

    @override
    def abort_days(self, uri: str) -> float | None:
        """Return None: files are never dropped."""
        return None

    @override
    def abort(self, staged: Sequence[StagedObject]) -> None:
        for item in staged:
            _refuse_links(item.upload)
            with suppress(ObjectMissingError, ObjectRefusedError), translating("delete", item.uri):
                os.unlink(item.upload)

    @override
    def token_rule(self, output: str, area: str) -> TokenRule:
        """Allow paths of temporary files."""
        return TokenRule(output, _temporary(output, area) + "/", None)

    @override
    def staged_under(self, prefix: str, area: str) -> Iterator[StagedObject]:
        at, root = parse(prefix).key, str(_path(area))
        _refuse_links(root + "/")
        for folder, _, names in os.walk(root):
            for name in names:
                final, _, attempt = os.path.join(folder, name)[len(root) :].rpartition(".")
                if final.startswith(at):
                    temporary = os.path.join(folder, name)
                    created = os.lstat(temporary).st_mtime
                    yield StagedObject(f"file://{final}", temporary, (), 0, attempt, created)
