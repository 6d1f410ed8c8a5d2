"""Begin: a job with its transform, and the schema of job files: `chunkmap init` and `schema`."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.cli.hints import command
from pipeline.cli.output import out, print_json, say
from pipeline.config.ingest_examples import ingest_schema
from pipeline.config.job_schema import TITLE, job_schema
from pipeline.config.job_template import (
    PACKAGE,
    SCHEMA_FILE,
    Column,
    Template,
    name_of_input,
)
from pipeline.config.load_examples import load_schema
from pipeline.config.pipeline_examples import pipeline_schema
from pipeline.config.settings import Settings, load_settings
from pipeline.errors import UsageError
from pipeline.report.humanize import plural


def init(
    source: str | None,
    name: str | None,
    output: str | None,
    environment: str | None,
    *,
    as_json: bool,
) -> None:
    """Write a job, its transform and what they need into the current folder."""
    settings = load_settings(environment)
    columns: list[Column] = []
    if source is not None:
        columns = _columns(source, settings, quiet=as_json)
    name = name or name_of_input(source or "first")
    template = Template(name, output=output or "", columns=columns)
    if source is not None:
        template = Template(name, source, output or "", columns)
    written = _write(template)
    allowed = PACKAGE in load_settings(environment).transforms.allow
    steps = [] if allowed else [f"add {PACKAGE} to transforms.allow in conf/base.yaml"]
    steps += [] if source else [f"name the input and the output in {name}.yaml"]
    steps += [command(word, f"{name}.yaml", environment=environment) for word in ("check", "run")]
    if as_json:
        print_json({"written": written, "next": steps})
        return
    for path in written:
        say(path, mark="[green]+[/] ")
    say("")
    say("next:")
    for step in steps:
        say(f"  {step}")


def _columns(source: str, settings: Settings, *, quiet: bool) -> list[Column]:
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.runs.driver.sample import sample_input
    from pipeline.storage import open_storage

    with explain_unreachable_s3(settings):
        sample = sample_input(source, open_storage(settings))
    if not quiet:
        count = plural(len(sample.schema), "column")
        say(f"{source}: {plural(sample.objects, 'object')}, {count} (as in {sample.first})")
    return [
        Column(column, str(kind), column in sample.partitions)
        for column, kind in sample.schema.items()
    ]


def _write(template: Template) -> list[str]:
    """Write the files; shared ones stay if they exist, those of the job must not.

    Raises:
        UsageError: A file of the job exists.
    """
    files = template.files()
    shared = {f"{PACKAGE}/__init__.py", "conf/base.yaml", SCHEMA_FILE}
    taken = [path for path in files if path not in shared and Path(path).exists()]
    if taken:
        raise UsageError(
            f"{' and '.join(taken)} {'exists' if len(taken) == 1 else 'exist'} already",
            hint="choose another name: --name NAME",
        )
    new = [path for path in files if not Path(path).exists() or _is_old_schema(path, files[path])]
    for path in new:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(files[path], encoding="utf-8")
    return new


def _is_old_schema(path: str, text: str) -> bool:
    """Whether a file is a schema of job files, made by another release."""
    if path != SCHEMA_FILE:
        return False
    stored = Path(path).read_text(encoding="utf-8", errors="replace")
    return stored != text and TITLE in stored


def print_schema(
    *, of_ingests: bool = False, of_loads: bool = False, of_pipelines: bool = False
) -> None:
    """Print the JSON Schema of the job file, or of another file.

    Raises:
        UsageError: Several others are asked for.
    """
    if of_ingests + of_loads + of_pipelines > 1:
        raise UsageError("--ingest, --load and --pipeline exclude each other: use one of them")
    schema = job_schema()
    if of_ingests:
        schema = ingest_schema()
    elif of_loads:
        schema = load_schema()
    elif of_pipelines:
        schema = pipeline_schema()
    out.print(json.dumps(schema, indent=1), soft_wrap=True)
