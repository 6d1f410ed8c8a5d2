"""Write the first job of a user: its file, a transform, the settings. Pure text."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline.config.job import parse_job
from pipeline.config.job_schema import job_schema
from pipeline.config.yaml_file import dump_yaml
from pipeline.errors import UsageError
from pipeline.printable import printable_line

PACKAGE = "transforms"
"""Package of the transforms that are made; the settings must allow it."""
SCHEMA_FILE = "job.schema.json"
_MAX_TYPE = 60
"""Maximum characters of a column's type."""
_ANY_INPUT = "s3://bucket/input/"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the input."""

    name: str
    type: str
    """Name of its Polars type."""
    is_partition: bool = False
    """Whether its value is in the names of folders."""


@dataclass(frozen=True, slots=True)
class Template:
    """What a new job is made of."""

    name: str
    input: str = _ANY_INPUT
    output: str = ""
    """URI of the output; default next to the input."""
    columns: Sequence[Column] = field(default=())
    """Columns of the input; empty if unknown."""

    def files(self) -> dict[str, str]:
        """Return the text of each file, by its path.

        Raises:
            UsageError: The name cannot be a job's, or the output cannot be next to the input.
        """
        job = self._job()
        try:
            parse_job(job, f"{self.name}.yaml")
        except UsageError as error:
            hint = error.hint or "choose other URIs or another name: --output URI, --name NAME"
            raise UsageError(f"this job would not be valid: {error}", hint=hint) from error
        return {
            f"{self.name}.yaml": job,
            f"{PACKAGE}/{self.module}.py": self._transform(),
            f"{PACKAGE}/__init__.py": '"""Transforms of our jobs."""\n',
            "conf/base.yaml": _SETTINGS,
            SCHEMA_FILE: json.dumps(job_schema(), indent=1) + "\n",
        }

    @property
    def module(self) -> str:
        """The name of the transform, and of its module."""
        name = re.sub(r"\W", "_", self.name).lower()
        name = name if name.isidentifier() else f"job_{name}"
        return f"{name}_" if keyword.iskeyword(name) else name

    def _job(self) -> str:
        output = self.output or f"{self.input.rstrip('/')}-{_suffix(self.name, self.input)}/"
        lines = [
            f"# yaml-language-server: $schema={SCHEMA_FILE}",
            f"# Try it on one chunk: chunkmap check {self.name}.yaml",
            *dump_yaml({"name": self.name}).splitlines(),
            "input:",
            *("  " + line for line in dump_yaml({"uri": self.input}).splitlines()),
            f"  # filter: {self._filter()} # rows to read",
            f"transform: {PACKAGE}.{self.module}:{self.module}",
            "# params: {rate: 1.1} # arguments of the transform",
            "output:",
            *("  " + line for line in dump_yaml({"uri": output}).splitlines()),
            "  mode: error # or append, overwrite, overwrite-partitions",
        ]
        dated = [column.name for column in self.columns if column.is_partition]
        if dated:
            window = json.dumps(dated[0], ensure_ascii=False)
            lines.append(f"# window: {{column: {window}}} # for `chunkmap backfill`")
        return "\n".join(lines) + "\n"

    def _filter(self) -> str:
        name = self.columns[0].name if self.columns else "column"
        return printable_line(json.dumps([[name, "is not null"]], ensure_ascii=False))

    def _transform(self) -> str:
        body = ["    return lf"]
        if self.columns:
            names = [
                f"        {_quoted(column.name)},  # {_type(column)}" for column in self.columns
            ]
            body = ["    return lf.select(", *names, "    )"]
        return "\n".join([*_TRANSFORM.format(name=self.module).splitlines(), *body]) + "\n"


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False) if name.isprintable() else repr(name)


def _type(column: Column) -> str:
    text = printable_line(column.type)
    text = text if len(text) <= _MAX_TYPE else text[: _MAX_TYPE - 1] + "…"
    return f"{text}, from the folder's name" if column.is_partition else text


def _suffix(name: str, source: str) -> str:
    return "out" if PurePosixPath(source).name == name else name


def name_of_input(uri: str) -> str:
    """Return a job's name for an input: that of its last folder."""
    last = re.sub(r"[^A-Za-z0-9_.-]", "-", uri.rstrip("/").rpartition("/")[2]).strip("-._")
    return last[:100] or "job"


_SETTINGS = f"""\
# Settings of all environments. `chunkmap config` lists every setting and its source.
transforms:
  allow: [{PACKAGE}] # packages that transforms may be imported from
"""
_TRANSFORM = '''\
"""A transform: what becomes of each chunk of the input."""

import polars as pl


def {name}(lf: pl.LazyFrame) -> pl.LazyFrame:
    """Return the rows of a chunk, changed. Only the columns that this reads leave S3."""
'''
