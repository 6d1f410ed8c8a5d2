"""Diagnose and repair the state of an output: `chunkmap repair`."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.cli.hints import command
from pipeline.cli.output import bad, print_json, say
from pipeline.config.settings import load_settings
from pipeline.table.repair import Diagnosis, Problem


def repair(output: str, environment: str | None, *, yes: bool, as_json: bool) -> int:
    """Diagnose an output or, with `yes`, repair it.

    Returns:
        The exit code: 0 if no problem is left, else 1.
    """
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.storage import open_storage
    from pipeline.table import repair as repairing
    from pipeline.table.log import TableLog

    settings = load_settings(environment)
    with explain_unreachable_s3(settings):
        table_log = TableLog(open_storage(settings), output)
        found = repairing.repair(table_log) if yes else (repairing.diagnose(table_log),)
    left = found[-1]
    if as_json:
        done = [problem for diagnosis in found[:-1] for problem in diagnosis.problems]
        print_json(
            {
                "output": left.output,
                "manifest": left.manifest,
                "dry_run": not yes,
                "repaired": [_row(problem) for problem in done if problem.action],
                "problems": [_row(problem) for problem in left.problems],
            }
        )
    else:
        again = command("repair", left.output, "--yes", environment=environment)
        _show(found, None if yes else again)
    return 1 if left.problems else 0


def _row(problem: Problem) -> dict[str, str]:
    return {
        "situation": problem.situation,
        "message": problem.message,
        "action": problem.action,
        "advice": problem.advice,
    }


def _show(found: Sequence[Diagnosis], again: str | None) -> None:
    """Show what was found and repaired; `again` is the command that repairs, if none has."""
    for diagnosis in found[:-1]:
        for problem in diagnosis.problems:
            if problem.action:
                say(f"{problem.situation}: {problem.message}")
                say(f"  repaired: {problem.action}")
    left = found[-1]
    for problem in left.problems:
        bad(f"{problem.situation}: {problem.message}")
        if problem.action:
            say(f"    repair will: {problem.action}")
        if problem.advice:
            say(f"    or: {problem.advice}" if problem.action else f"    {problem.advice}")
    if not left.problems:
        say(f"{left.output} needs no repair: manifest {left.manifest} is current")
    elif again is not None and left.can_repair:
        say(f"nothing was changed; to repair it: {again}")
