"""Local files: the same promises as S3 on one machine's file system."""

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
from pipeline.storage.backend import Blob, StagedObject
from pipeline.storage.s3_errors import translating
from pipeline.storage.tokens import TokenRule
from pipeline.uris import parse

log = logging.getLogger(__name__)


def _path(uri: str) -> Path:
    return Path(parse(uri).key)


_SCRATCH = ".chunkmap~"
"""Ends the names of our locks and half-written files, which no listing shows."""


def _etag(found: os.stat_result) -> str:
    # A rewrite changes the inode or the time; a truncation changes the size.
    return f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"


def _scratch(path: Path, mark: str) -> Path:
    """A file of ours beside another, on the same file system."""
    return path.with_name(f".{path.name}.{mark}{_SCRATCH}")


def _temporary(uri: str, area: str) -> str:
    return str(Path(f"{_path(area)}{_path(uri)}"))


def _require_staged(item: StagedObject) -> None:
    """Raise FileNotFoundError unless what was staged is still there. We stage files, and no links.

    Raises:
        StateError: see `_refuse_links`.
    """
    _refuse_links(item.upload)
    if not stat.S_ISREG(os.lstat(item.upload).st_mode):
        raise FileNotFoundError(errno.ENOENT, "nothing is staged", item.upload)


def _refuse_links(path: str) -> None:
    """Refuse a path that leads out of a folder of state: nothing of ours is a link there.

    Raises:
        StateError: a folder below `<output>.chunkmap/` on the way is a symbolic link.
    """
    parts = path.split("/")
    state = next((n for n, part in enumerate(parts) if part.endswith(".chunkmap")), len(parts))
    for end in range(state + 2, len(parts)):
        folder = "/".join(parts[:end])
        if os.path.islink(folder):
            raise StateError(
                f"file://{folder}",
                "it is a symbolic link, and what is deleted there would be deleted elsewhere",
                hint="find out who made it, and remove the link",
            )


class LocalBackend:
    """Files below `file://` URIs."""

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Backend.objects`."""
        at = parse(prefix).key
        _refuse_links(at)
        for folder, _, names in os.walk(os.path.dirname(at)):
            for name in names:
                path = os.path.join(folder, name)
                if path.startswith(at) and not name.endswith(_SCRATCH):
                    # What goes away while we look is not there.
                    with suppress(ObjectMissingError):
                        yield self.head(f"file://{path}")

    def after(self, folder: str, name: str) -> Iterator[ObjectInfo]:
        """See `Backend.after`."""
        for info in self.objects(folder):
            rest = info.uri.removeprefix(folder)
            if rest > name and "/" not in rest:
                yield info

    def head(self, uri: str) -> ObjectInfo:
        """See `Backend.head`."""
        with translating("head", uri):
            found = _path(uri).stat()
            if stat.S_ISDIR(found.st_mode):
                raise FileNotFoundError(errno.ENOENT, "a folder is no object", uri)
        return ObjectInfo(uri, _etag(found), found.st_size)

    def get(self, uri: str) -> Blob:
        """See `Backend.get`."""
        with translating("get", uri), _path(uri).open("rb") as file:
            etag = _etag(os.fstat(file.fileno()))
            return Blob(file.read(), etag)

    def get_ranges(self, info: ObjectInfo, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """See `Backend.get_ranges`: the file is held open, so a replacement cannot mix in."""
        with translating("get", info.uri), _path(info.uri).open("rb") as file:
            data = [memoryview(os.pread(file.fileno(), b - a, a)) for a, b in ranges]
            now = _etag(os.fstat(file.fileno()))
        if now != info.etag:
            raise ObjectChangedError(info.uri, info.etag, now)
        return data

    def put(self, uri: str, data: bytes) -> None:
        """See `Backend.put`."""
        with translating("put", uri):
            os.replace(self._written(uri, data), _path(uri))

    def put_new(self, uri: str, data: bytes) -> None:
        """See `Backend.put_new`: a hard link to a whole file fails if the name is taken."""
        with translating("put", uri):
            temporary = self._written(uri, data)
            try:
                os.link(temporary, _path(uri))
            except FileExistsError as error:
                raise AlreadyExistsError(uri) from error
            finally:
                temporary.unlink()

    def put_if(self, uri: str, data: bytes, etag: str) -> None:
        """See `Backend.put_if`: compare and rename under a lock that all our processes take."""
        with self._locked(uri):
            if self.head(uri).etag != etag:
                raise PreconditionFailedError(uri)
            self.put(uri, data)

    @contextmanager
    def _locked(self, uri: str) -> Iterator[None]:
        path = _path(uri)
        with translating("lock", uri), _scratch(path, "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _written(self, uri: str, data: bytes | memoryview) -> Path:
        path = _path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _scratch(path, uuid.uuid4().hex)
        temporary.write_bytes(data)
        # The kernel's own time stamps are some milliseconds coarse, and inodes are used again: a
        # file replaced twice in a row could carry the version mark of the first one.
        now = time.time_ns()
        os.utime(temporary, ns=(now, now))
        return temporary

    def copy(self, source: str, target: str) -> None:
        """See `Backend.copy`."""
        with translating("copy", source):
            path = _path(target)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = _scratch(path, uuid.uuid4().hex)
            shutil.copyfile(_path(source), temporary)
            os.replace(temporary, path)

    def delete(self, uri: str) -> None:
        """See `Backend.delete`."""
        _refuse_links(parse(uri).key)
        with translating("delete", uri):
            _path(uri).unlink(missing_ok=True)

    def stage(self, uri: str, data: memoryview, attempt: str, area: str) -> StagedObject:
        """See `Backend.stage`: a temporary file, on the output's own file system."""
        temporary = Path(f"{_temporary(uri, area)}.{attempt}")
        with translating("stage", uri):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            etag = _etag(temporary.stat())
        return StagedObject(uri, str(temporary), (etag,), len(data), attempt)

    def missing(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        """See `Backend.missing`."""
        return self._gone(self._look, staged)

    def complete(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        """See `Backend.complete`."""
        return self._gone(self._show, staged)

    def _look(self, item: StagedObject) -> None:
        with translating("stat", item.uri):
            _require_staged(item)

    def _show(self, item: StagedObject) -> None:
        with translating("rename", item.uri):
            _require_staged(item)
            path = _path(item.uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(item.upload, path)

    def _gone(
        self, act: Callable[[StagedObject], None], staged: Sequence[StagedObject]
    ) -> list[StagedObject]:
        """Do something with what is staged; those that are neither staged nor visible.

        A path that the file system refuses is one of them; a missing right or a full disk is
        raised, once each of the others has been dealt with.
        """
        gone, errors = [], []
        for item in staged:
            try:
                act(item)
            except (ObjectMissingError, ObjectRefusedError, InvalidUriError) as error:
                if self._is_ours(item):
                    continue
                if not isinstance(error, ObjectMissingError):
                    log.warning("a staged output can never be published: %s", error)
                gone.append(item)
            except StorageError as error:
                errors.append(error)
        if errors:
            raise min(errors, key=lambda error: not isinstance(error, AccessDeniedError))
        return gone

    def _is_ours(self, item: StagedObject) -> bool:
        # Renaming changes neither the inode nor the time.
        try:
            return (self.head(item.uri).etag,) == item.parts
        except (ObjectMissingError, ObjectRefusedError, InvalidUriError):
            return False

    def abort_days(self, uri: str) -> float | None:
        """See `Backend.abort_days`: nobody drops our files."""
        return None

    def abort(self, staged: Sequence[StagedObject]) -> None:
        """See `Backend.abort`."""
        for item in staged:
            _refuse_links(item.upload)
            with suppress(ObjectMissingError, ObjectRefusedError), translating("delete", item.uri):
                os.unlink(item.upload)

    def token_rule(self, output: str, area: str) -> TokenRule:
        """See `Backend.token_rule`: paths of temporary files."""
        return TokenRule(output, _temporary(output, area) + "/", None)

    def staged_under(self, prefix: str, area: str) -> Iterator[StagedObject]:
        """See `Backend.staged_under`."""
        at, root = parse(prefix).key, str(_path(area))
        _refuse_links(root + "/")
        for folder, _, names in os.walk(root):
            for name in names:
                final, _, attempt = os.path.join(folder, name)[len(root) :].rpartition(".")
                if final.startswith(at):
                    temporary = os.path.join(folder, name)
                    created = os.lstat(temporary).st_mtime
                    yield StagedObject(f"file://{final}", temporary, (), 0, attempt, created)
