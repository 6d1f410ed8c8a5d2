"""Load settings for the suite, which allows its own transforms: nobody else's settings have to."""

from __future__ import annotations

import os

from pipeline.config.settings import Settings, load_settings

TRANSFORMS = "benchmarks.transforms"
VARIABLE = "CHUNKMAP_TRANSFORMS__ALLOW"


def load_suite_settings(environment: str | None = None) -> Settings:
    """Load the settings, with the workloads' transforms allowed here and in processes started here.

    A stack that was started elsewhere has to allow them itself, through the same variable.
    """
    found = load_settings(environment)
    if TRANSFORMS in found.transforms.allow:
        return found
    os.environ[VARIABLE] = ",".join((*found.transforms.allow, TRANSFORMS))
    return load_settings(environment)
