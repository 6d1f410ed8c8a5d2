"""Run the demo job from start to verified output on this machine: `chunkmap demo`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.cli.hints import command
from pipeline.cli.output import notes, print_json, say, show_commands, warn
from pipeline.cli.run import run_job, show
from pipeline.cli.status import verify
from pipeline.cli.waiting import Waiting
from pipeline.cluster import local
from pipeline.config.job import Job, load_job
from pipeline.config.layers import ENDPOINT_VARIABLES
from pipeline.config.settings import Settings, ignored_credentials, load_settings
from pipeline.errors import StackError
from pipeline.flows.server import ui_address
from pipeline.runs.admin.verify import verify_output
from pipeline.storage import open_storage

JOB = Path(__file__).parents[1] / "examples" / "demo.yaml"
SCALE_FACTOR = 1
"""TPC-H lineitem has 6 million rows at scale factor 1."""
FILES = 8


@dataclass(frozen=True, slots=True)
class _Stack:
    """The services that the demo runs on."""

    settings: Settings
    is_local: bool
    """Whether they are those of `chunkmap up`."""
    stays: bool
    """Whether they still run after the demo."""


def demo(environment: str | None, *, keep: bool, as_json: bool) -> int:
    """Run the demo; returns the exit code.

    Args:
        environment: The environment of the settings.
        keep: Whether the local services keep running.
        as_json: Whether to print one JSON object.
    """
    job = load_job(JOB)
    with _stack(environment, keep=keep, quiet=as_json) as stack:
        _generate(job, stack.settings, quiet=as_json)
        code = _run(job, stack, environment, as_json=as_json)
    if not code and not as_json:
        _show_next(job, stack, environment)
    return code


def _run(job: Job, stack: _Stack, environment: str | None, *, as_json: bool) -> int:
    settings = stack.settings
    if settings.prefect.api_url:
        login = local.prefect_login(settings)
        page = ui_address(settings.prefect.api_url)
        _note(f"Prefect UI: {page} ({login})" if login else f"Prefect UI: {page}")
    again = command("demo", environment=environment)
    outcome = run_job(job, settings, again, quiet=as_json)
    if not as_json:
        # The address is of no use once the server is stopped.
        show(outcome if stack.stays else replace(outcome, page=""))
        return verify(job.output.uri, environment)
    found = verify_output(open_storage(settings), job.output.uri)
    print_json(outcome.to_dict() | {"verified": asdict(found)})
    return 1 if found.problems else 0


def _show_next(job: Job, stack: _Stack, environment: str | None) -> None:
    give = partial(command, environment=environment)
    up = {give("up"): "start the services again, with their data"}
    env = {f'eval "$({give("env")})"': "let other tools use this S3"}
    commands = {
        give("head", job.output.uri): "look at the result",
        give("init", job.input.uri[0]): "write a job of your own over the same input",
    }
    if stack.is_local and stack.stays:
        say(f"\nThe services keep running, until you stop them: {give('down')}")
    if stack.is_local:
        commands = commands | env if stack.stays else up | commands
    show_commands({**_on_path(Path(sys.executable).parent), **commands})


def _on_path(programs: Path) -> dict[str, str]:
    """Return the command that makes `chunkmap` known to the shell, unless it is."""
    if shutil.which("chunkmap"):
        return {}
    here = Path.cwd()
    folder = f"$PWD/{programs.relative_to(here)}" if programs.is_relative_to(here) else programs
    return {f'export PATH="{folder}:$PATH"': "let this shell find the commands"}


def _note(text: str) -> None:
    say(text, console=notes)


@contextmanager
def _stack(environment: str | None, *, keep: bool, quiet: bool) -> Iterator[_Stack]:
    """Start the local services if the settings need them, and stop them unless they ran before."""
    before = load_settings(environment)
    if local.is_elsewhere(before):
        yield _Stack(before, is_local=False, stays=True)
        return
    # The demo is about this machine, whatever S3 the shell is set up for.
    ignored = [name for name in ENDPOINT_VARIABLES if os.environ.pop(name, None)]
    before = load_settings(environment)
    stays = keep or all(service.state == "running" for service in local.status(before))
    with Waiting(quiet=quiet) as waiting:
        local.up(before, lambda line: waiting.line(line, notes), waiting)
    settings = load_settings(environment)
    ignored += ignored_credentials(settings)
    if ignored:
        warn(f"not used by the demo, which has an S3 of its own: {', '.join(ignored)}")
    try:
        yield _Stack(settings, is_local=True, stays=stays)
    finally:
        if not stays:
            with Waiting(quiet=quiet) as waiting:
                local.down(before, lambda line: waiting.line(line, notes), waiting)


def _generate(job: Job, settings: Settings, *, quiet: bool) -> None:
    """Generate TPC-H lineitem into S3, unless it exists."""
    storage = open_storage(settings)
    target = job.input.uri[0]
    if len(storage.objects(target)) == FILES:
        _note(f"TPC-H lineitem is in {target} already")
        return
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="chunkmap-") as folder, Waiting(quiet=quiet) as waiting:
        command = [_generator(), "parquet", "-s", str(SCALE_FACTOR), "--tables=lineitem"]
        command += [f"--parts={FILES}", f"--output-dir={folder}"]
        waiting("TPC-H lineitem, 6 million rows, to be generated (once)")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StackError(f"tpchgen-cli failed: {done.stderr.strip()}")
        waiting(f"{FILES} files to be stored in {target}")
        for path in sorted(Path(folder, "lineitem").iterdir()):
            storage.put(target + path.name, path.read_bytes())
    _note(f"TPC-H lineitem generated into {target} in {time.perf_counter() - clock:.1f} s")


def _generator() -> str:
    name = "tpchgen-cli"
    program = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if program is None:
        raise StackError("tpchgen-cli is not installed", hint="pip install 'chunkmap[local]'")
    return program
