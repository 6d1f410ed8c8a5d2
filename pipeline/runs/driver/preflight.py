"""Check what is cheap to check before anything is started for a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config.job import Job
from pipeline.config.settings import Settings, ignored_credentials
from pipeline.errors import (
    BucketMissingError,
    EngineUnavailableError,
    TransientStorageError,
)
from pipeline.runs.transforms.loading import load_transform
from pipeline.storage import Storage
from pipeline.table.log import TableLog


@contextmanager
def explain_unreachable_s3(settings: Settings) -> Iterator[None]:
    """Turn a failure of the first S3 requests into an error that names the configured address.

    Raises:
        EngineUnavailableError: S3 does not answer after all retries.
        BucketMissingError: There is no such bucket, perhaps since another S3 is meant.
    """
    try:
        yield
    except TransientStorageError as error:
        where = settings.s3.endpoint_url or "Amazon's address"
        others = ", or at an endpoint in s3.buckets" if settings.s3.buckets else ""
        raise EngineUnavailableError(
            f"S3 does not answer at {where} (s3.endpoint_url{others}): {error}",
            hint="check that it is running and that the address is right; `chunkmap config` shows "
            "where the address is set",
        ) from error
    except BucketMissingError as error:
        ignored = ", ".join(ignored_credentials(settings))
        if not ignored:
            raise
        # Probably a bucket of the user's own.
        raise BucketMissingError(
            error.bucket,
            hint=f"not used: {ignored}, since the S3 of the local stack is "
            f"({settings.s3.endpoint_url}); stop it with `chunkmap down`, or set the "
            "AWS_ENDPOINT_URL_S3 of the bucket",
        ) from error


def preflight(job: Job, settings: Settings, storage: Storage) -> None:
    """Check what is cheap to check before anything is started for a job. Writes nothing.

    Raises:
        JobError, TransformNotAllowedError: the transform does not exist or is not allowed.
        EngineUnavailableError, BucketMissingError, AccessDeniedError: the state of an output
            cannot be read.
    """
    load_transform(job.transform, job.params, settings.transforms)
    with explain_unreachable_s3(settings):
        for output in job.all_outputs.values():
            TableLog(storage, output.uri).head()
