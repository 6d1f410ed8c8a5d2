"""Refuse a cluster whose workers' packages differ from those of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pipeline.cluster.client import ASK_SECONDS
from pipeline.cluster.process_info import PACKAGES, versions
from pipeline.errors import VersionMismatchError

MAX_NAMES = 3
"""Maximum workers to name in an error."""


def refuse_other_versions(client: Any, seconds: float = ASK_SECONDS) -> None:
    """Refuse a cluster whose workers' Python or packages differ from those of this process.

    Tasks and results are pickled, and the workers' Polars writes the Parquet, so differences are
    refused before anything runs. Workers that do not answer are ignored.

    Raises:
        VersionMismatchError: Versions differ; the error names both and the workers.
    """
    ours = versions()

    async def get_versions() -> dict[str, Any]:
        coroutine = client.get_versions(packages=list(PACKAGES))
        return dict((await asyncio.wait_for(coroutine, seconds))["workers"])

    try:
        answers = client.sync(get_versions)
    except (OSError, TimeoutError):
        return
    wrong: dict[tuple[str, str], list[str]] = {}
    for address, answer in answers.items():
        python = ".".join(answer["host"]["python"].split(".")[:2])
        packages = {**answer["packages"], "python": python}
        for name, our_version in ours.items():
            theirs = packages.get(name) or "none"
            if theirs != our_version:
                wrong.setdefault((name, theirs), []).append(address)
    if wrong:
        lines = [
            f"{name} {ours[name]} here, {theirs} on {few(workers)}"
            for (name, theirs), workers in sorted(wrong.items())
        ]
        hint = "give the driver and the workers the same image, or the same constraints.txt"
        if ("chunkmap", "none") in wrong:
            hint = (
                "workers import chunkmap: install it and its packages where they run, in the "
                "versions that are here"
            )
        raise VersionMismatchError(
            "versions of the cluster's workers differ: " + "; ".join(lines), hint
        )


def few(names: Sequence[str]) -> str:
    """Join the first names, and count the others."""
    rest = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def check_versions(runner: Any) -> None:
    """Refuse a task runner whose workers' packages differ from those of this process.

    Raises:
        VersionMismatchError: Versions differ; the error names both and the workers.
    """
    refuse_other_versions(runner.client)
