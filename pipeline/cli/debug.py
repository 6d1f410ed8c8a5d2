"""Debug one chunk in this terminal: `chunkmap run JOB --debug-chunk N`."""

from __future__ import annotations

import pdb
import sys
import time
from collections.abc import Mapping

from pipeline.cli.output import bad, say
from pipeline.config.job import Job
from pipeline.config.settings import Settings
from pipeline.errors import TransformError, UsageError
from pipeline.report.humanize import duration
from pipeline.runs.driver.debug import DebugChunk, find_chunk, user_traceback
from pipeline.runs.driver.preflight import explain_unreachable_s3
from pipeline.runs.ledger.ledger import Ledger
from pipeline.runs.worker.failures import where_of
from pipeline.storage import open_storage


def refuse_beside(option: str, others: Mapping[str, bool]) -> None:
    """Refuse options that do nothing beside one that debugs.

    Args:
        option: The option that debugs.
        others: Whether each of the other options is given.
    """
    given = [name for name, is_given in others.items() if is_given]
    if given:
        raise UsageError(f"{given[0]} and {option} exclude each other: use one of them")


def debug_chunk(job: Job, settings: Settings, index: int, ledger: Ledger | None = None) -> int:
    """Map one chunk here and open Python's debugger where the user's code fails.

    `breakpoint()` in a transform works too. Without a terminal, the error ends the command. With
    the ledger of a plan of pieces, it is a piece of a reduced result.

    Returns:
        Exit code: 1 if the chunk fails.

    Raises:
        ChunkmapError: The chunk cannot be read, or it fails and there is no terminal.
    """
    with explain_unreachable_s3(settings):
        found = find_chunk(job, settings, open_storage(settings), index, ledger)
    of_run = f" of run {found.run}" if found.run else ""
    unit = ledger.unit if ledger else "chunk"
    say(f"{unit} {index}{of_run}: {where_of(found.chunk)}")
    clock = time.perf_counter()
    try:
        results = found.map()
    except TransformError as error:
        if not sys.stdin.isatty():
            raise
        bad(str(error))
        _open_debugger(found, error, settings)
        return 1
    rows = sum(result.height for result in results.values())
    say(
        f"it works here: {found.chunk.rows:,} planned rows, {rows:,} rows out, in "
        f"{duration(time.perf_counter() - clock)}; nothing was stored"
    )
    return 0


def _open_debugger(found: DebugChunk, error: TransformError, settings: Settings) -> None:
    trace = user_traceback(error, settings.transforms.allowed)
    if trace is not None:
        say("this is where your code failed: `p NAME` prints a value, `u` goes up, `q` ends")
        pdb.post_mortem(trace)
        return
    say(
        "Polars ran the query that your function returned, and failed. Step through the function: "
        "`n` goes to the next line, `p frame.collect()` prints a frame, `q` ends"
    )
    found.step(pdb.runcall)
