"""Dispatch operations on objects to the backend of their URI, with one retry policy."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from partitioning import ObjectInfo
from pipeline.config.sections import S3Settings
from pipeline.config.settings import Settings, own_settings
from pipeline.errors import (
    AlreadyExistsError,
    InvalidUriError,
    ObjectMissingError,
    PreconditionFailedError,
    StateError,
    TransientStorageError,
)
from pipeline.metrics import current_tally
from pipeline.storage.backend import Backend, Blob, ObjectStart, StagedObject
from pipeline.storage.local_backend import LocalBackend
from pipeline.storage.retry import RetryPolicy
from pipeline.storage.tokens import TokenRule
from pipeline.uris import parse, staged_area, state_prefix

if TYPE_CHECKING:
    from pipeline.storage.s3_backend import S3Backend
    from pipeline.storage.s3_connection import Access

T = TypeVar("T")


class Storage:
    """Reads, writes and stages objects by URI."""

    def __init__(
        self,
        backends: Mapping[str, Backend | Callable[[str], Backend]],
        retry: RetryPolicy | None = None,
    ) -> None:
        """Create the storage.

        Args:
            backends: Backend by URI scheme, or a function that returns it by the bucket's name.
            retry: Policy for transient errors.
        """
        self._backends = backends
        self._retry = retry or RetryPolicy()

    def backend(self, uri: str) -> Backend:
        """Return the backend of a URI."""
        location = parse(uri)
        backend = self._backends[location.scheme]
        return backend(location.bucket) if callable(backend) else backend

    def _retry_call(self, call: Callable[[], T]) -> T:
        return self._retry.call(call, current_tally().add_retry)

    def retrying(self, call: Callable[[], T]) -> T:
        """Call a function of another library on objects, again after transient errors."""
        return self._retry_call(call)

    def objects(self, prefix: str) -> list[ObjectInfo]:
        """List all objects whose URI starts with the prefix, in any order.

        The cost does not depend on the number of other objects. The same holds for `after`.
        """
        return self._retry_call(lambda: list(self.backend(prefix).objects(prefix)))

    def after(self, folder: str, name: str) -> list[ObjectInfo]:
        """List the direct children of a folder whose name is greater than one, in any order.

        Args:
            folder: URI, with a slash at its end. Objects in folders below it are left out.
            name: Name of an object, which need not exist.
        """
        return self._retry_call(lambda: list(self.backend(folder).after(folder, name)))

    def head(self, uri: str) -> ObjectInfo:
        """Return ETag and size. Raises ObjectMissingError."""
        return self._retry_call(lambda: self.backend(uri).head(uri))

    def get(self, uri: str) -> Blob:
        """Read an object. Raises ObjectMissingError."""
        return self._retry_call(lambda: self.backend(uri).get(uri))

    def get_or_none(self, uri: str) -> Blob | None:
        """Read an object; return None if it does not exist."""
        try:
            return self.get(uri)
        except ObjectMissingError:
            return None

    def get_ranges(self, info: ObjectInfo, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Read half-open byte ranges of the version `info`. Raises ObjectChangedError."""
        return self._retry_call(lambda: self.backend(info.uri).get_ranges(info, ranges))

    def put(self, uri: str, data: bytes) -> None:
        """Overwrite unconditionally. For advisory objects only."""
        self._retry_call(lambda: self.backend(uri).put(uri, data))

    def put_new(self, uri: str, data: bytes) -> None:
        """Create an object that must not exist.

        If the response to a write was lost, its retry fails with "already exists". Then the object
        is read back, and equal bytes mean success. To be distinguished from other writers, a writer
        puts an id into its bytes.

        Raises:
            AlreadyExistsError: An object with other content exists.
        """

        def create() -> None:
            try:
                self.backend(uri).put_new(uri, data)
            except (AlreadyExistsError, PreconditionFailedError) as error:
                blob = self.get_or_none(uri)
                if blob is None:
                    # S3 may refuse a writer (409) although the other writer then fails, too.
                    raise TransientStorageError(
                        f"put {uri}: lost a race that nobody won"
                    ) from error
                if blob.data != data:
                    raise AlreadyExistsError(uri) from error

        self._retry_call(create)

    def put_if(self, uri: str, data: bytes, etag: str) -> None:
        """Replace the version with this ETag; the bytes must contain an id of the writer.

        Raises:
            PreconditionFailedError: The object is another version, or missing.
        """

        def replace() -> None:
            try:
                self.backend(uri).put_if(uri, data, etag)
            except (AlreadyExistsError, PreconditionFailedError, ObjectMissingError) as error:
                blob = self.get_or_none(uri)
                if blob is not None and blob.data == data:
                    return
                if blob is not None and blob.etag == etag:
                    raise TransientStorageError(
                        f"put {uri}: lost a race that nobody won"
                    ) from error
                raise PreconditionFailedError(uri) from error

        self._retry_call(replace)

    def copy(self, source: str, target: str) -> None:
        """Copy an object on the server's side, within one backend.

        Raises:
            InvalidUriError: The two are on different services, or have different access settings.
        """
        if self.backend(source) is not self.backend(target):
            raise InvalidUriError(
                f"{source} cannot be copied to {target}: they are on different services"
            )
        self._retry_call(lambda: self.backend(source).copy(source, target))

    def delete(self, uri: str) -> None:
        """Delete an object; a missing object is no error."""
        self._retry_call(lambda: self.backend(uri).delete(uri))

    def stage(
        self, uri: str, data: memoryview, attempt: str, area: str, sha256: str | None = None
    ) -> StagedObject:
        """Write without making visible. A retry may leave an orphan, which vacuum finds.

        Args:
            uri: Where it will be visible.
            data: The content.
            attempt: Id of the attempt.
            area: Prefix of temporary objects.
            sha256: SHA-256 of the content in hexadecimal digits, if it is known.
        """
        return self._retry_call(lambda: self.backend(uri).stage(uri, data, attempt, area, sha256))

    def can_extend(self, source: str, uri: str, size: int) -> bool:
        """Whether `extend` copies on the server's side, without fetching the bytes.

        Args:
            source: URI of the object to copy from.
            uri: Where the result will be visible.
            size: Number of bytes to copy.
        """
        backend = self.backend(uri)
        return backend is self.backend(source) and backend.can_extend(source, uri, size)

    def extend(
        self, start: ObjectStart, tail: memoryview, uri: str, attempt: str, area: str
    ) -> StagedObject:
        """Stage the start of an object followed by other bytes, without making it visible.

        Args:
            start: What to copy (see `can_extend`); another version of the object is refused.
            tail: The bytes after these.
            uri: Where it will be visible.
            attempt: Id of the attempt.
            area: Prefix of temporary objects.

        Raises:
            ObjectChangedError: The object is another version.
            InvalidUriError: The server cannot copy from one to the other.
        """
        if not self.can_extend(start.info.uri, uri, start.size):
            raise InvalidUriError(
                f"{start.info.uri} cannot be copied to {uri} on the server's side: it is too "
                "small, or the two are on different services"
            )
        return self._retry_call(lambda: self.backend(uri).extend(start, tail, uri, attempt, area))

    def missing(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        """Return those that have vanished and can never be completed."""
        return self._by_backend(staged, lambda backend, some: backend.missing(some))

    def complete(self, staged: Sequence[StagedObject]) -> list[StagedObject]:
        """Make visible; return those that have vanished. Completing twice changes nothing."""
        return self._by_backend(staged, lambda backend, some: backend.complete(some))

    def abort_days(self, uri: str) -> float | None:
        """Return the days after which staged outputs are dropped; None if never, or unknown."""
        return self.backend(uri).abort_days(uri)

    def abort(self, staged: Sequence[StagedObject]) -> None:
        """Drop staged outputs; missing ones are no error."""

        def drop(backend: Backend, some: Sequence[StagedObject]) -> list[StagedObject]:
            backend.abort(some)
            return []

        self._by_backend(staged, drop)

    def is_conditional(self, uri: str) -> bool:
        """Whether writes to a URI use the service's conditions."""
        return getattr(self.backend(uri), "conditional", True)

    def client_options(self, uri: str) -> dict[str, str]:
        """Return the options with which libraries on object_store reach a URI; they hold secrets.

        There are none for local files.
        """
        if not uri.startswith("s3"):
            return {}
        from pipeline.storage.s3_connection import Access

        access = getattr(self.backend(uri), "access", None)
        if not isinstance(access, Access):
            return {}
        options = client_options(access, parse(uri).bucket)
        if access.key_id is None and not access.anonymous:
            found, _ = access.provide()
            options |= {name: value for name, value in found.items() if value}
        return options

    def token_rule(self, output: str) -> TokenRule:
        """Return the rule for tokens of outputs that are staged for an output.

        Args:
            output: URI of the output prefix, with a slash at its end.
        """
        return self.backend(output).token_rule(output, staged_area(output))

    def check_staged(self, staged: Iterable[StagedObject], output: str) -> None:
        """Refuse tokens that staging below an output cannot have made.

        Call it before stored tokens are completed or aborted, which copies and deletes the objects
        that they name.

        Raises:
            StateError: A token is refused; the message names the key and the token.
        """
        rule = self.token_rule(output)
        for item in staged:
            if not rule.allows(item.uri, item.upload, item.attempt):
                raise StateError(
                    item.uri,
                    f"staging it as attempt {item.attempt[:64]!r} could not have given the token "
                    f"{item.upload[:1024]!r}",
                    hint="no worker of this run wrote it: check who may write to "
                    f"{state_prefix(output)}, then run `chunkmap repair {output}`",
                )

    def staged_under(self, prefix: str, area: str) -> list[StagedObject]:
        """List the staged outputs whose URI starts with the prefix."""
        return self._retry_call(lambda: list(self.backend(prefix).staged_under(prefix, area)))

    def _by_backend(
        self,
        staged: Sequence[StagedObject],
        call: Callable[[Backend, Sequence[StagedObject]], list[StagedObject]],
    ) -> list[StagedObject]:
        results: list[StagedObject] = []
        for backend, group in groupby(staged, key=self._backend_of):
            if backend is None:
                results += group  # No object can have such a name.
            else:
                results += self._retry_call(partial(call, backend, list(group)))
        return results

    def _backend_of(self, item: StagedObject) -> Backend | None:
        try:
            return self.backend(item.uri)
        except InvalidUriError:
            return None


class S3Services:
    """The S3 backends of a process: one for `s3`, and one per key of `s3.buckets`.

    A backend is created on first use, and the clients of S3 are imported then: it takes as long as
    a small run on local files. All backends share the limit `s3.max_requests`.
    """

    def __init__(self, s3: S3Settings) -> None:
        self._s3 = s3
        self._requests: Any = None
        self._backends: dict[str | None, S3Backend] = {}
        self._lock = Lock()

    def __call__(self, bucket: str) -> S3Backend:
        """Return the backend of a bucket."""
        key = self._s3.bucket_key(bucket)
        with self._lock:
            if key not in self._backends:
                self._backends[key] = self._create(bucket)
            return self._backends[key]

    def _create(self, bucket: str) -> S3Backend:
        from pipeline.storage.s3_backend import S3Backend
        from pipeline.storage.s3_connection import access_of
        from pipeline.storage.s3_requests import Requests

        if self._requests is None:
            self._requests = Requests(self._s3.max_requests)
        return S3Backend(
            access_of(self._s3, bucket),
            requests=self._requests,
            copied_bytes=self._s3.copied_bytes,
            conditional=self._s3.of_bucket(bucket).conditional_writes == "required",
        )


def open_storage(settings: Settings) -> Storage:
    """Open the storage for these settings: S3 with the standard AWS variables, and local files.

    A process has one client for the same settings and variables, because creating a client takes a
    quarter of a second, and because its requests are limited together.
    """
    aws = {name: value for name, value in os.environ.items() if "AWS_" in name}
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
    """Return the options with which Polars scans the bucket of a URI; they hold secrets."""
    from pipeline.storage.s3_connection import access_of

    bucket = parse(uri).bucket
    return client_options(access_of(settings.s3, bucket), bucket)


def client_options(access: Access, bucket: str) -> dict[str, str]:
    """Return the options of libraries on object_store for a bucket, with given credentials."""
    secrets = {
        "aws_access_key_id": access.key_id,
        "aws_secret_access_key": access.secret,
        "aws_session_token": access.token,
    }
    options = {name: value for name, value in secrets.items() if value}
    for name, value in access.options(bucket).items():
        options[name] = str(value).lower() if isinstance(value, bool) else value
    return options | ({"aws_allow_http": "true"} if access.endpoint else {})


def scan_arguments(settings: Settings, uri: str) -> dict[str, Any]:
    """Return the arguments with which Polars scans files at a URI; none for local files.

    The credentials are passed as a function: Polars would combine options with variables of AWS.
    """
    if not uri.startswith("s3"):
        return {}
    from pipeline.storage.s3_connection import access_of

    access = access_of(settings.s3, parse(uri).bucket)
    options: dict[str, Any] = {"storage_options": scan_options(settings, uri)}
    return options if access.anonymous else {**options, "credential_provider": access.provide}


def own_storage() -> Storage:
    """Open the storage for the settings of this process (see `open_storage`)."""
    return open_storage(own_settings())
