"""Secrets among the parameters of a function: a job names a variable, each process has its value.

So the secret is in no job, plan, fingerprint, flow run or report; a new value makes no new run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pipeline.config.secret import MIN_MASKED
from pipeline.errors import JobError
from pipeline.masking import FROM_ENV, hide


def resolve_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with the value of the variable instead of each `{from_env: VARIABLE}`.

    These values are masked in all texts of this process from then on.

    Raises:
        JobError: the variable is not set in this process, or too short to be masked; or there is no
            name of one.
    """
    return {name: _resolve(value, name) for name, value in params.items()}


def _resolve(value: Any, place: str) -> Any:
    if isinstance(value, list):
        return [_resolve(item, place) for item in value]
    if not isinstance(value, Mapping):
        return value
    if FROM_ENV not in value:
        return {key: _resolve(item, f"{place}.{key}") for key, item in value.items()}
    variable = value[FROM_ENV]
    if len(value) > 1 or not isinstance(variable, str) or not variable:
        raise JobError(
            f"params.{place}: {FROM_ENV} stands alone, and names an environment variable",
            hint=f"write {{{FROM_ENV}: SHOP_TOKEN}}",
        )
    secret = os.environ.get(variable)
    if secret is None:
        raise JobError(
            f"the environment variable {variable} (params.{place}) is not set in this process",
            hint="set it for the driver and for every worker: the job has its name only",
        )
    if len(secret) < MIN_MASKED:
        raise JobError(
            f"the environment variable {variable} (params.{place}) has fewer than {MIN_MASKED} "
            "characters: it could not be masked in logs and errors",
            hint="use a longer secret, or a plain parameter for what is none",
        )
    hide(secret)
    return secret
