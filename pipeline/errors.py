"""Everything that chunkmap raises on purpose.

    ChunkmapError                       exit code 1 unless a class says otherwise
    ├── UsageError                      2
    │   ├── SettingsError
    │   ├── JobError
    │   ├── InvalidUriError
    │   ├── InputError
    │   ├── OutputNotEmptyError
    │   ├── TransformNotAllowedError
    │   ├── EngineUnavailableError
    │   └── VersionMismatchError
    ├── StorageError
    │   ├── TransientStorageError       (Transient)
    │   ├── AccessDeniedError           2, also an InputError
    │   ├── BucketMissingError          2, also an InputError
    │   ├── ObjectMissingError
    │   ├── ObjectRefusedError
    │   ├── ObjectChangedError
    │   ├── AlreadyExistsError
    │   └── PreconditionFailedError
    ├── StateError
    ├── UnreadableObjectError
    │   └── WrongPageIndexError
    ├── TransformError
    │   └── PartitionColumnError
    ├── ChunkTimeoutError
    ├── SchemaChangedError
    ├── StackError
    ├── RunFailedError
    │   └── QuarantineLimitError
    ├── RunInterruptedError             130
    ├── RunCancelledError
    └── ConflictError                   3

Whether trying again may help is told by type: an error that is `Transient` may pass, every other
one is terminal. All of them survive pickling, because they travel between processes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class Transient:
    """Marks an error that may pass when the same thing is tried again."""


class ChunkmapError(Exception):
    """Base of every error that chunkmap raises on purpose.

    Attributes:
        exit_code: What the command line exits with.
        message: One sentence that names the thing that is wrong.
        hint: The next step to take, a sentence or a command, if there is one.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls the class with `args`, which breaks every subclass that builds
        # its message from other arguments.
        return _rebuild, (type(self), self.args, self.__dict__)

    @classmethod
    def _restore(cls, args: tuple[Any, ...], state: dict[str, Any]) -> Self:
        error = cls.__new__(cls, *args)
        error.args = args
        error.__dict__.update(state)
        return error


def _rebuild(cls: type[ChunkmapError], args: tuple[Any, ...], state: dict[str, Any]) -> Exception:
    return cls._restore(args, state)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    return isinstance(error, Transient)


class UsageError(ChunkmapError):
    """What the user gave cannot be used; nothing has been written."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is unknown, mistyped, or cannot be read."""


class JobError(UsageError):
    """The job file is missing, is not YAML, or says something that a job cannot say."""


class InvalidUriError(UsageError):
    """A URI names no object or prefix that chunkmap could reach. No secret in it is repeated."""


class InputError(UsageError):
    """The input is missing, unreadable, or not what the job says it is."""


class OutputNotEmptyError(UsageError):
    """The output holds something that this run did not publish, and the mode is `error`."""


class TransformNotAllowedError(UsageError):
    """The transform's module is not among those that the settings allow to be imported."""


class EngineUnavailableError(UsageError):
    """No Dask scheduler or Prefect server answers at the address in the settings."""


class VersionMismatchError(UsageError):
    """Workers have another Python, or other packages, than whoever gives them work."""


class StorageError(ChunkmapError):
    """S3 or the file system answered in a way that stops us."""


class TransientStorageError(StorageError, Transient):
    """A timeout, a broken connection, throttling or a 5xx answer.

    Attributes:
        status: The answer's HTTP status, or 0 if none came.
    """

    status: int = 0


class AccessDeniedError(StorageError, InputError):
    """The credentials do not allow an action on a key.

    Attributes:
        action: The S3 action, such as `s3:GetObject`.
        uri: The object, prefix or bucket.
    """

    exit_code = 2

    def __init__(self, action: str, uri: str, hint: str | None = None) -> None:
        super().__init__(f"no permission for {action} on {uri}", hint)
        self.action = action
        self.uri = uri


class BucketMissingError(StorageError, InputError):
    """The bucket does not exist.

    Attributes:
        bucket: Its name.
    """

    exit_code = 2

    def __init__(self, bucket: str, hint: str | None = None) -> None:
        hint = hint or "make it, or mend the job; is s3.endpoint_url the right one?"
        super().__init__(f"bucket s3://{bucket}/ does not exist", hint)
        self.bucket = bucket


class ObjectMissingError(StorageError):
    """An object that should be there is not.

    Attributes:
        uri: The object.
    """

    def __init__(self, uri: str, hint: str | None = None) -> None:
        super().__init__(f"{uri} does not exist", hint)
        self.uri = uri


class ObjectRefusedError(StorageError):
    """The store refuses this one object, now and later: its key, its parts, or its upload's id."""


class ObjectChangedError(StorageError):
    """An object is not the version that was planned.

    Attributes:
        uri: The object.
        planned: The ETag in the plan.
        found: The ETag that the object has now, if the server told it.
    """

    def __init__(self, uri: str, planned: str, found: str | None, hint: str | None = None) -> None:
        now = f"its ETag is now {found}" if found else "its ETag is now another"
        super().__init__(f"{uri} changed after it was planned: planned {planned}, {now}", hint)
        self.uri = uri
        self.planned = planned
        self.found = found


class UnreadableObjectError(ChunkmapError):
    """An object's data are damaged, or hold a value that does not fit its column's type.

    Attributes:
        uri: The object.
        reason: What is wrong, and where.
    """

    def __init__(self, uri: str, reason: str, hint: str | None = None) -> None:
        hint = hint or (
            "replace it, leave it out (input.exclude), or set input.on_bad_object: skip, or "
            "quarantine"
        )
        super().__init__(f"{uri} cannot be read: {reason}", hint)
        self.uri = uri
        self.reason = reason


class WrongPageIndexError(UnreadableObjectError):
    """A page has other rows than its index says.

    No run goes on without such an object: other parts of its row group, in other chunks, may have
    been read by the same index, and nothing showed.
    """

    def __init__(self, uri: str, reason: str, hint: str | None = None) -> None:
        hint = hint or (
            "write it again, leave it out (input.exclude), or have its row groups read whole by a "
            "higher chunks.target"
        )
        super().__init__(uri, reason, hint)


class AlreadyExistsError(StorageError):
    """A create-once write found an object in its place.

    Attributes:
        uri: The object.
    """

    def __init__(self, uri: str, hint: str | None = None) -> None:
        super().__init__(f"{uri} already exists", hint)
        self.uri = uri


class PreconditionFailedError(StorageError):
    """A replace-if-unchanged write found another version in its place.

    Attributes:
        uri: The object.
    """

    def __init__(self, uri: str, hint: str | None = None) -> None:
        super().__init__(f"{uri} was replaced by someone else in the meantime", hint)
        self.uri = uri


class StateError(ChunkmapError):
    """A stored object of chunkmap's own is damaged, or is not what its name says.

    Attributes:
        uri: The object.
    """

    def __init__(self, uri: str, problem: str, hint: str | None = None) -> None:
        hint = hint or (
            "restore the object from a backup or an older version in the bucket, and find out "
            "who wrote this one"
        )
        super().__init__(f"{uri} cannot be used: {problem}", hint)
        self.uri = uri


class TransformError(ChunkmapError):
    """The transform cannot be loaded, raised, or returned what it may not return."""


class PartitionColumnError(TransformError):
    """A result's partition column does not say what the key of the output will say."""


class ChunkTimeoutError(ChunkmapError):
    """A chunk took longer than the job's `chunk_timeout`; its worker ended itself."""


class SchemaChangedError(ChunkmapError):
    """A chunk's output has other columns or types than the outputs before it."""


class StackError(ChunkmapError):
    """A process of the embedded stack did not start or does not answer."""


class RunFailedError(ChunkmapError):
    """The run ended with chunks that failed; their errors are in its report."""


class QuarantineLimitError(RunFailedError):
    """More objects could not be read than the job allows (`input.max_quarantined`)."""


class RunInterruptedError(ChunkmapError):
    """The user interrupted the run; what is done is kept."""

    exit_code = 130


class RunCancelledError(ChunkmapError):
    """Somebody cancelled the run; what is done is kept."""


class ConflictError(ChunkmapError):
    """Another run or commit got there first."""

    exit_code = 3
