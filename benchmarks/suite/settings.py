"""Load settings for the suite, which allows its own transforms: nobody else's settings have to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config.settings import Settings, load_settings

TRANSFORMS = "benchmarks.transforms"
VARIABLE = "CHUNKMAP_TRANSFORMS__ALLOW"


@contextmanager
def suite_settings(environment: str | None = None) -> Iterator[Settings]:
    """Allow the workloads' transforms during the block, here and in processes started in it.

    A stack that was started elsewhere has to allow them itself, through the same variable.
    """
    before = os.environ.get(VARIABLE)
    try:
        yield load_suite_settings(environment)
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def load_suite_settings(environment: str | None = None) -> Settings:
    """Load the settings in a process of the suite: its environment is changed for good."""
    settings = load_settings(environment)
    if TRANSFORMS in settings.transforms.allow:
        return settings
    os.environ[VARIABLE] = ",".join((*settings.transforms.allow, TRANSFORMS))
    return load_settings(environment)
