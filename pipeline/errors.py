"""Everything that chunkmap raises on purpose.

    ChunkmapError                       exit code 1 unless a class says otherwise
    ├── UsageError                      2
    │   ├── SettingsError
    │   ├── JobError
    │   ├── LoadFileError
    │   ├── DeployFileError
    │   ├── PipelineFileError
    │   ├── InvalidUriError
    │   ├── InputError
    │   ├── OutputNotEmptyError
    │   ├── TransformNotAllowedError
    │   ├── EngineUnavailableError
    │   └── VersionMismatchError
    ├── StorageError
    │   ├── TransientStorageError       (Transient)
    │   │   └── ThrottledError
    │   ├── AccessDeniedError           2, also an InputError
    │   ├── BucketMissingError          2, also an InputError
    │   ├── ObjectMissingError
    │   ├── ObjectRefusedError
    │   ├── ObjectChangedError
    │   ├── AlreadyExistsError
    │   └── PreconditionFailedError
    ├── FunctionMissingError            (Transient)
    ├── StateError
    ├── UnreadableObjectError
    │   └── WrongPageIndexError
    ├── TransformError
    │   ├── GroupsFailedError
    │   ├── PartitionColumnError
    │   └── PartitionLimitError
    ├── ChunkTimeoutError
    ├── SchemaChangedError
    ├── StackError
    ├── CheckError
    ├── RowsRefusedError
    ├── RunFailedError
    │   ├── QuarantineLimitError
    │   ├── ChecksFailedError
    │   └── MergeFailedError
    ├── RunInterruptedError             130
    ├── RunCancelledError
    └── ConflictError                   3

The type says whether a retry may help: an error that is `Transient` may pass, every other error is
permanent. All of them can be pickled, because they travel between processes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pipeline.masking import mask_text


class Transient:
    """Mark an error that may pass on a retry."""


class ChunkmapError(Exception):
    """Base of every error that chunkmap raises on purpose.

    Attributes:
        exit_code: Exit code of a command that ends with it.
        message: One sentence that names the thing that is wrong; secrets in it are masked.
        hint: The next step, a sentence or a command, if there is one.
        end_state: State of the run or backfill that ends with it.
    """

    exit_code: ClassVar[int] = 1
    end_state: ClassVar[str] = "failed"

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = mask_text(message)
        self.hint = None if hint is None else mask_text(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # `Exception.__reduce__` calls the class with `args`, which breaks every subclass that
        # builds its message from other arguments.
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
    """Whether a retry may help."""
    return isinstance(error, Transient)


class UsageError(ChunkmapError):
    """The user's input cannot be used; nothing has been written."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is unknown, mistyped, or cannot be read."""


class JobError(UsageError):
    """The job file is missing, is not YAML, or has a key or value that is not allowed."""


class LoadFileError(UsageError):
    """The load file is missing, is not YAML, or has a key or value that is not allowed."""


class DeployFileError(UsageError):
    """prefect.yaml or an environment's file is missing, not YAML, or has something not allowed."""


class PipelineFileError(UsageError):
    """The pipeline file is missing or wrong, or a parameter has no such value."""


class InvalidUriError(UsageError):
    """A URI names no object or prefix that chunkmap can reach. The message repeats no secret."""


class InputError(UsageError):
    """The input is missing, unreadable, or not as the job describes it."""


class OutputNotEmptyError(UsageError):
    """The output contains objects that this run did not publish, and the mode is `error`.

    Attributes:
        run: Id of the run that published them; empty if no run did.
    """

    run: str = ""


class TransformNotAllowedError(UsageError):
    """The transform's module is not among those that the settings allow to be imported."""


class EngineUnavailableError(UsageError):
    """No Dask scheduler or Prefect server answers at the address in the settings."""


class VersionMismatchError(UsageError):
    """Workers have another Python version, other packages or other code than the driver."""


class StorageError(ChunkmapError):
    """S3 or the file system refused or failed a request."""


class TransientStorageError(StorageError, Transient):
    """A timeout, a broken connection, throttling or a 5xx response.

    Attributes:
        status: HTTP status of the response, or 0 if there was none.
    """

    status: int = 0


class ThrottledError(TransientStorageError):
    """The service refuses a request because it gets too many: 503, 429, or a code that says so."""


class AccessDeniedError(StorageError, InputError):
    """The credentials do not allow an action on a key.

    Attributes:
        action: The S3 action, such as `s3:GetObject`; for a file `read`, `write`, `list`, `delete`.
        uri: The object, prefix or bucket.
    """

    exit_code = 2

    def __init__(self, action: str, uri: str, hint: str | None = None) -> None:
        what = f"to {action} {uri}" if uri.startswith("file:") else f"for {action} on {uri}"
        super().__init__(f"no permission {what}", hint)
        self.action = action
        self.uri = uri


class BucketMissingError(StorageError, InputError):
    """The bucket does not exist.

    Attributes:
        bucket: Its name.
    """

    exit_code = 2

    def __init__(self, bucket: str, hint: str | None = None) -> None:
        hint = hint or "create it, or fix the URI in the job or the setting s3.endpoint_url"
        super().__init__(f"bucket s3://{bucket}/ does not exist", hint)
        self.bucket = bucket


class ObjectMissingError(StorageError):
    """An expected object does not exist.

    Attributes:
        uri: The object.
    """

    def __init__(self, uri: str, hint: str | None = None) -> None:
        super().__init__(f"{uri} does not exist", hint)
        self.uri = uri


class ObjectRefusedError(StorageError):
    """The store permanently refuses one object: its key, its parts, or the id of its upload."""


class ObjectChangedError(StorageError):
    """An object is not the version that was planned.

    Attributes:
        uri: The object.
        planned: The ETag in the plan.
        found: The present ETag of the object, if the server returned it.
    """

    def __init__(self, uri: str, planned: str, found: str | None, hint: str | None = None) -> None:
        now = f"is now {found}" if found else "is now different"
        super().__init__(f"{uri} changed after it was planned: ETag {planned} {now}", hint)
        self.uri = uri
        self.planned = planned
        self.found = found


class UnreadableObjectError(ChunkmapError):
    """An object's data is damaged, or has a value that does not fit its column's type.

    Attributes:
        uri: The object.
        reason: What is wrong, and where.
    """

    def __init__(self, uri: str, reason: str, hint: str | None = None) -> None:
        hint = hint or (
            "replace it, leave it out (input.exclude), or set input.on_bad_object: skip or "
            "quarantine"
        )
        super().__init__(f"{uri} cannot be read: {reason}", hint)
        self.uri = uri
        self.reason = reason


class WrongPageIndexError(UnreadableObjectError):
    """The rows of a page differ from its page index.

    A run never skips such an object: other chunks may have read other parts of its row group by the
    same wrong index without noticing.
    """

    def __init__(self, uri: str, reason: str, hint: str | None = None) -> None:
        hint = hint or (
            "rewrite it, leave it out (input.exclude), or raise chunks.target so that its row "
            "groups are read whole"
        )
        super().__init__(uri, reason, hint)


class AlreadyExistsError(StorageError):
    """A create-once write found an existing object.

    Attributes:
        uri: The object.
    """

    def __init__(self, uri: str, hint: str | None = None) -> None:
        super().__init__(f"{uri} already exists", hint)
        self.uri = uri


class PreconditionFailedError(StorageError):
    """A replace-if-unchanged write found another version.

    Attributes:
        uri: The object.
    """

    def __init__(self, uri: str, hint: str | None = None) -> None:
        super().__init__(f"{uri} was replaced by another process in the meantime", hint)
        self.uri = uri


def backup_of(uri: str) -> str:
    """Name where a lost object may still be."""
    return "a backup" if uri.startswith("file:") else "a backup or an older version in the bucket"


class FunctionMissingError(ChunkmapError, Transient):
    """A worker lacks a function that is sent by value; the driver sends it, and it may retry."""


class StateError(ChunkmapError):
    """An object of chunkmap's stored state is damaged, or does not match its name.

    Attributes:
        uri: The object.
    """

    def __init__(self, uri: str, problem: str, hint: str | None = None) -> None:
        hint = hint or f"restore it from {backup_of(uri)}, and find out what overwrote it"
        super().__init__(f"{uri} cannot be used: {problem}", hint)
        self.uri = uri


class TransformError(ChunkmapError):
    """The transform cannot be loaded, raised an error, or returned something invalid."""


class GroupsFailedError(TransformError):
    """A function failed for groups of a reduced result (`then`).

    Attributes:
        groups: Their keys, for the record of the failure.
    """

    def __init__(self, message: str, groups: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.groups = groups


class PartitionColumnError(TransformError):
    """A partition column of a result differs from the value in the output's key."""


class PartitionLimitError(TransformError):
    """The result has more partitions than the job allows (`output.max_partitions`)."""


class ChunkTimeoutError(ChunkmapError):
    """A chunk took longer than the job's `chunk_timeout`; its worker exited."""


class SchemaChangedError(ChunkmapError):
    """A chunk's output has other columns or types than earlier outputs."""


class CheckError(ChunkmapError):
    """A check of the result cannot be made: a column or a package is missing, a query is wrong."""


class RowsRefusedError(ChunkmapError):
    """Rows of a chunk's result break rules of the job's schema (`checks.rows`), which blocks."""


class StackError(ChunkmapError):
    """A process of the embedded stack did not start or does not respond."""


class RunFailedError(ChunkmapError):
    """The run ended with chunks that failed; their errors are in its report."""


class MergeFailedError(RunFailedError):
    """Files could not be merged from the chunks' results; nothing was published."""


class QuarantineLimitError(RunFailedError):
    """More objects could not be read than the job allows (`input.max_quarantined`)."""


class ChecksFailedError(RunFailedError):
    """Checks of the whole result refuse it (`checks`); nothing of it was published.

    Attributes:
        windows: Labels of the windows that are refused; empty for a run without windows.
    """

    windows: tuple[str, ...] = ()


class RunInterruptedError(ChunkmapError):
    """The user interrupted the run; completed chunks are kept."""

    exit_code = 130


class RunCancelledError(ChunkmapError):
    """A user cancelled the run; completed chunks are kept."""

    end_state = "cancelled"


class ConflictError(ChunkmapError):
    """Another run or commit was faster."""

    exit_code = 3
