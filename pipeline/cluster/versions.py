"""Refuse a cluster whose processes have other versions than this one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.cluster.client import ASK_SECONDS
from pipeline.cluster.process_info import PACKAGES, versions
from pipeline.errors import VersionMismatchError

if TYPE_CHECKING:
    pass


def refuse_other_versions(client: Any, seconds: float = ASK_SECONDS) -> None:
    """Refuse a cluster whose workers have another Python, or other packages, than this process.

    Tasks and results travel as pickles, and Parquet is written by the workers' Polars: what differs
    is told before anything runs. Workers that do not answer are left out.

    Raises:
        VersionMismatchError: it names both versions and the workers.
    """
    ours = versions()

    async def look() -> dict[str, Any]:
        asked = client.get_versions(packages=list(PACKAGES))  # A coroutine on the client's loop.
        found = await asyncio.wait_for(asked, seconds)
        return dict(found["workers"])

    try:
        answers = client.sync(look)
    except (OSError, TimeoutError):
        return
    wrong: dict[tuple[str, str], list[str]] = {}
    for address, answer in answers.items():
        said = {**answer["packages"], "python": ".".join(answer["host"]["python"].split(".")[:2])}
        for name, mine in ours.items():
            theirs = said.get(name) or "none"
            if theirs != mine:
                wrong.setdefault((name, theirs), []).append(address)
    if wrong:
        lines = [
            f"{name} {ours[name]} here, {theirs} on {_few(workers)}"
            for (name, theirs), workers in sorted(wrong.items())
        ]
        raise VersionMismatchError(
            "the cluster's workers have other versions: " + "; ".join(lines),
            "give the driver and the workers the same image, or the same constraints.txt",
        )


def _few(names: Sequence[str]) -> str:
    most = 3
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def check_versions(runner: Any) -> None:
    """Refuse workers with other packages than ours.

    Raises:
        VersionMismatchError: both versions are named.
    """
    from pipeline.cluster.versions import refuse_other_versions

    refuse_other_versions(runner.client)
