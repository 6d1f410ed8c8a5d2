"""`Storage`: objects by URI, on whichever backend the URI names, with one retry policy."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import groupby
from threading import Lock
from typing import TypeVar

from partitioning import ObjectInfo
from pipeline.config.sections import S3Settings
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import (
    AlreadyExistsError,
    InvalidUriError,
    ObjectMissingError,
    PreconditionFailedError,
    StateError,
    TransientStorageError,
)
from pipeline.storage.backend import Backend, Blob, StagedObject
from pipeline.storage.local_backend import LocalBackend
from pipeline.storage.retry import RetryPolicy
from pipeline.storage.s3_backend import S3Backend
from pipeline.storage.s3_connection import access_of
from pipeline.storage.s3_requests import Requests
from pipeline.storage.tokens import TokenRule
from pipeline.uris import parse, staged_area, state_prefix

T = TypeVar("T")


class Storage:
    """Reads, writes and stages objects by URI."""

    def __init__(
        self,
        backends: Mapping[str, Backend | Callable[[str], Backend]],
        retry: RetryPolicy | None = None,
    ) -> None:
        """Make it.

        Args:
            backends: By the URIs' scheme; or what finds it by the bucket's name.
            retry: For what may pass.
        """
        self._backends = backends
        self._retry = retry or RetryPolicy()

    def backend(self, uri: str) -> Backend:
        """The backend that has a URI."""
        at = parse(uri)
        found = self._backends[at.scheme]
        return found(at.bucket) if callable(found) else found

    def _tried(self, call: Callable[[], T]) -> T:
        for attempt in self._retry.tries():
            with attempt:
                return call()
        raise AssertionError("stamina returns or raises")

    def objects(self, prefix: str) -> list[ObjectInfo]:
        """Every object whose URI starts with the prefix, in any order.

        It costs what these cost, however many others there are beside them. So does `after`.
        """
        return self._tried(lambda: list(self.backend(prefix).objects(prefix)))

    def after(self, folder: str, name: str) -> list[ObjectInfo]:
        """Every object right in a folder whose name there is greater than one, in any order.

        Args:
            folder: URI, with a slash at its end. What is in folders below it is left out.
            name: Of an object that may be there or not.
        """
        return self._tried(lambda: list(self.backend(folder).after(folder, name)))

    def head(self, uri: str) -> ObjectInfo:
        """ETag and size. Raises ObjectMissingError."""
        return self._tried(lambda: self.backend(uri).head(uri))

    def get(self, uri: str) -> Blob:
        """The whole object. Raises ObjectMissingError."""
        return self._tried(lambda: self.backend(uri).get(uri))

    def get_or_none(self, uri: str) -> Blob | None:
        """The whole object, or None."""
        try:
            return self.get(uri)
        except ObjectMissingError:
            return None

    def get_ranges(self, info: ObjectInfo, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Half-open byte ranges of the version that `info` names. Raises ObjectChangedError."""
        return self._tried(lambda: self.backend(info.uri).get_ranges(info, ranges))

    def put(self, uri: str, data: bytes) -> None:
        """Write, whatever is there. For advisory objects only."""
        self._tried(lambda: self.backend(uri).put(uri, data))

    def put_new(self, uri: str, data: bytes) -> None:
        """Create an object that must not be there.

        A write whose reply was lost comes back as "already exists" when it is tried again: what is
        there is read back, and our own bytes mean success. So whoever must be told apart from
        another writer has an id in its bytes.

        Raises:
            AlreadyExistsError: something else is there.
        """

        def create() -> None:
            try:
                self.backend(uri).put_new(uri, data)
            except (AlreadyExistsError, PreconditionFailedError) as error:
                found = self.get_or_none(uri)
                if found is None:
                    # S3 may refuse a writer although the other one then fails, too (409).
                    raise TransientStorageError(
                        f"put {uri}: lost a race that nobody won"
                    ) from error
                if found.data != data:
                    raise AlreadyExistsError(uri) from error

        self._tried(create)

    def put_if(self, uri: str, data: bytes, etag: str) -> None:
        """Replace the version with this ETag; the bytes must hold an id of the writer.

        Raises:
            PreconditionFailedError: the object is another version, or gone.
        """

        def replace() -> None:
            try:
                self.backend(uri).put_if(uri, data, etag)
            except (AlreadyExistsError, PreconditionFailedError, ObjectMissingError) as error:
                found = self.get_or_none(uri)
                if found is not None and found.data == data:
                    return
                if found is not None and found.etag == etag:
                    raise TransientStorageError(
                        f"put {uri}: lost a race that nobody won"
                    ) from error
                raise PreconditionFailedError(uri) from error

        self._tried(replace)

    def copy(self, source: str, target: str) -> None:
        """Copy on the server's side, within one backend.

        Raises:
            InvalidUriError: the two are on services, or reached in ways, that differ.
        """
        if self.backend(source) is not self.backend(target):
            raise InvalidUriError(f"{source} cannot be copied to {target}: another service has it")
        self._tried(lambda: self.backend(source).copy(source, target))

    def delete(self, uri: str) -> None:
        """Remove; an absent object is no error."""
        self._tried(lambda: self.backend(uri).delete(uri))

    def stage(self, uri: str, data: memoryview, attempt: str, area: str) -> StagedObject:
        """Write without making visible. A repeated try leaves an orphan, which cleaning finds."""
        return self._tried(lambda: self.backend(uri).stage(uri, data, attempt, area))

    def missing(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        """Those that have vanished and can never be completed."""
        return self._by_backend(staged, lambda backend, some: backend.missing(some))

    def complete(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        """Make visible; returns those that have vanished. Completing twice changes nothing."""
        return self._by_backend(staged, lambda backend, some: backend.complete(some))

    def abort_days(self, uri: str) -> float | None:
        """After how many days the storage drops what is staged; None if never, or unknown."""
        return self.backend(uri).abort_days(uri)

    def abort(self, staged: Sequence[StagedObject]) -> None:
        """Drop what is staged; what is already gone is no error."""

        def drop(backend: Backend, some: Sequence[StagedObject]) -> list[StagedObject]:
            backend.abort(some)
            return []

        self._by_backend(staged, drop)

    def is_conditional(self, uri: str) -> bool:
        """Whether writes there depend on the service's conditions."""
        return getattr(self.backend(uri), "conditional", True)

    def token_rule(self, output: str) -> TokenRule:
        """What the tokens of what is staged for an output can be.

        Args:
            output: URI of the output prefix, with a slash at its end.
        """
        return self.backend(output).token_rule(output, staged_area(output))

    def check_staged(self, staged: Iterable[StagedObject], output: str) -> None:
        """Refuse tokens that staging below an output could not have given.

        To be called before tokens that others have written down are completed or aborted: that
        copies and deletes what they name.

        Raises:
            StateError: one of them could not; it names the key and the token.
        """
        rule = self.token_rule(output)
        for item in staged:
            if not rule.allows(item.uri, item.upload, item.attempt):
                raise StateError(
                    item.uri,
                    f"staging it as attempt {item.attempt[:64]!r} could not have given the token "
                    f"{item.upload[:1024]!r}",
                    hint="no worker of this run wrote it: check who may write to "
                    f"{state_prefix(output)}, then make it good with `chunkmap repair {output}`",
                )

    def staged_under(self, prefix: str, area: str) -> list[StagedObject]:
        """What is staged for URIs that start with the prefix."""
        return self._tried(lambda: list(self.backend(prefix).staged_under(prefix, area)))

    def _by_backend(
        self,
        staged: Sequence[StagedObject],
        call: Callable[[Backend, Sequence[StagedObject]], list[StagedObject]],
    ) -> list[StagedObject]:
        found: list[StagedObject] = []
        for backend, group in groupby(staged, key=self._backend_of):
            if backend is None:
                found += group  # No object has such a name.
            else:
                found += self._tried(partial(call, backend, list(group)))
        return found

    def _backend_of(self, item: StagedObject) -> Backend | None:
        try:
            return self.backend(item.uri)
        except InvalidUriError:
            return None


class S3Services:
    """The S3 backends of a process: one for each way in which the settings reach buckets.

    Each is made when its first bucket is wanted. Together they keep to `s3.max_requests`.
    """

    def __init__(self, s3: S3Settings) -> None:
        self._s3 = s3
        self._requests = Requests(s3.max_requests)
        self._made: dict[str | None, S3Backend] = {}
        self._lock = Lock()

    def __call__(self, bucket: str) -> S3Backend:
        """The backend of a bucket."""
        key = self._s3.bucket_key(bucket)
        with self._lock:
            if key not in self._made:
                self._made[key] = self._make(bucket)
            return self._made[key]

    def _make(self, bucket: str) -> S3Backend:
        return S3Backend(
            access_of(self._s3, bucket),
            requests=self._requests,
            copied_bytes=self._s3.copied_bytes,
            conditional=self._s3.of_bucket(bucket).conditional_writes == "required",
        )


def open_storage(settings: Settings) -> Storage:
    """Open the storage that the settings name: S3 by the standard AWS variables, and local files.

    A process has one client for the same settings and variables: making one takes a quarter of a
    second, and its requests are limited together.
    """
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with _opened_lock:
        for s3, variables, storage in _opened:
            if s3 == settings.s3 and variables == aws:
                return storage
        storage = Storage({"s3": S3Services(settings.s3), "file": LocalBackend()})
        _opened.append((settings.s3, aws, storage))
        return storage


_opened: deque[tuple[S3Settings, dict[str, str], Storage]] = deque(maxlen=4)
_opened_lock = Lock()


def scan_options(settings: Settings, uri: str) -> dict[str, str]:
    """What Polars' own scans need to reach the bucket of a URI. Holds secrets."""
    access = access_of(settings.s3, parse(uri).bucket)
    secrets = {
        "aws_access_key_id": access.key_id,
        "aws_secret_access_key": access.secret,
        "aws_session_token": access.token,
    }
    options = {name: value for name, value in secrets.items() if value}
    for name, value in access.options(parse(uri).bucket).items():
        options[name] = str(value).lower() if isinstance(value, bool) else value
    return options | ({"aws_allow_http": "true"} if access.endpoint else {})


@cache
def own_storage() -> Storage:
    """The storage that this process's own settings name, opened once."""
    return open_storage(load_settings())
