"""Read the pipeline file: stages that run one after the other, with parameters and conditions.

    name: daily
    state: s3://shop/pipelines/daily/
    parameters:
      date: {type: date, default: yesterday}
    pipeline:
      - ingest: orders.yaml
        set: {window.from: "{{ date }}", window.to: "{{ date + 1d }}"}
      - map: revenue.yaml
        when: ingest.rows > 0
      - load: warehouse.yaml
        when: weekday(date) < 5

A stage names the file of an ingest, a job or a load, relative to this file, or holds its keys
itself. Texts in these files may hold templates: `{{ date }}`, `{{ date + 1d }}`. Checks and a
reduce belong to the job of a `map` stage (`checks`, `reduce`, `then`), since nothing that they
refuse must become visible.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipeline.config.expressions import (
    FUNCTIONS,
    WORDS,
    ExpressionError,
    Kind,
    Node,
    Value,
    parse,
)
from pipeline.config.ingest import Ingest
from pipeline.config.job import Job, Uri
from pipeline.config.job_part import Function, Part
from pipeline.config.load_file import LoadFile
from pipeline.config.templates import fill, text_of
from pipeline.config.yaml_file import (
    STANDARD_INPUT,
    Location,
    YamlFile,
    change_yaml,
    dump_yaml,
    nearest,
    parse_yaml,
    read_yaml,
    set_values,
)
from pipeline.config.yaml_model import validate
from pipeline.errors import JobError, LoadFileError, PipelineFileError, UsageError
from pipeline.masking import is_secret_name
from pipeline.uris import as_prefix
from pipeline.uris import parse as parse_uri

NAME = r"^[A-Za-z][A-Za-z0-9_]{0,49}$"
MAX_STAGES = 100
MAX_TEXT = 10_000
"""Maximum number of characters of a parameter."""
StageKind = Literal["ingest", "map", "load", "call"]
KINDS: tuple[StageKind, ...] = ("ingest", "map", "load", "call")
STAGE_FACTS: Mapping[str, Kind] = {
    "rows": "number",
    "changed": "boolean",
    "published": "boolean",
    "state": "text",
}
"""Facts of each stage, such as `orders.rows`."""
OWN_FACTS: Mapping[str, Kind] = {"rows": "number", "published": "boolean"}
"""Facts of the stage that a stage needs, if it is one."""
RESERVED = (*WORDS, *FUNCTIONS, *OWN_FACTS, "input", "today")
_KIND_OF_TYPE: Mapping[str, Kind] = {
    "date": "date",
    "integer": "number",
    "number": "number",
    "string": "text",
    "boolean": "boolean",
}
RELATIVE_DAYS = {"today": 0, "yesterday": 1}
"""Dates that a parameter may have, as days before the present date in UTC."""

ParameterType = Literal["date", "integer", "number", "string", "boolean"]
Scalar = bool | int | float | str | date


def _type_alone(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class Parameter(Part):
    """A parameter."""

    type: ParameterType
    """Type of its value. A date is a day, such as 2024-03-01."""
    default: Scalar | None = None
    """Value if none is given; for a date also `today` or `yesterday` (in UTC). Without a default,
    a value is required."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.default is not None:
            parameter_value(self.type, self.default)
        return self


def parameter_value(kind: ParameterType, value: Any, today: date | None = None) -> Value:
    """Return the value of a parameter.

    Args:
        kind: Its type.
        value: A value of YAML or JSON, or its text.
        today: The present date; default that in UTC.

    Raises:
        ValueError: The value is not of this type.
    """
    if kind == "string":
        if isinstance(value, str) and len(value) <= MAX_TEXT:
            return value
    elif isinstance(value, str):
        return _parse_text(kind, value, today or datetime.now(UTC).date())
    elif _has_type(kind, value):
        return value  # type: ignore[no-any-return]
    raise ValueError(f"{repr(value)[:60]} is not {_NAMES[kind]}")


_NAMES = {
    "date": "a date such as 2024-03-01",
    "integer": "a whole number",
    "number": "a number",
    "string": f"a text of at most {MAX_TEXT:,} characters",
    "boolean": "true or false",
}


def _has_type(kind: ParameterType, value: Any) -> bool:
    if kind == "date":
        return isinstance(value, date) and not isinstance(value, datetime)
    if kind == "boolean" or isinstance(value, bool):
        return kind == "boolean" and isinstance(value, bool)
    if kind == "integer":
        return isinstance(value, int)
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


_WHOLE = re.compile(r"-?[0-9]+")


def _parse_text(kind: ParameterType, text: str, today: date) -> Value:
    problem = ValueError(f"{text!r} is not {_NAMES[kind]}")
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    try:
        if kind == "date":
            ago = RELATIVE_DAYS.get(text)
            return date.fromisoformat(text) if ago is None else today - timedelta(days=ago)
        if kind == "integer":
            return int(text)
        if kind == "number" and math.isfinite(number := float(text)):
            # A whole one as in YAML and JSON: as 5.0 it would be another run than 5.
            return int(text) if _WHOLE.fullmatch(text) else number
    except ValueError:
        raise problem from None
    raise problem


def _expression(text: Any) -> Any:
    text = str(text).lower() if isinstance(text, bool) else text
    if isinstance(text, str):
        parse(text)
    return text


class Stage(Part):
    """A stage. It has one of `ingest`, `map`, `load` and `call`."""

    name: Annotated[str, Field(pattern=NAME)] = ""
    """Name: letters, digits and `_`. Default: what it does, e.g. `ingest`."""
    ingest: str | dict[str, Any] | None = None
    """File of an ingest, or its keys."""
    map: str | dict[str, Any] | None = None
    """Job file, or its keys."""
    load: str | dict[str, Any] | None = None
    """Load file, or its keys."""
    call: Function | None = None
    """Function, as `module:function`, in a module that `transforms.allow` names. It is called with
    a mapping of facts (`pipeline`, `run`, `parameters`, `stages`) and may return a number of
    rows."""
    params: dict[str, Any] = Field(default={})
    """Keyword arguments of `call`; texts may hold templates."""
    set_: dict[str, Any] = Field(default={}, alias="set")
    """Values that replace those of the stage's file, by dotted key; texts may hold templates."""
    refresh: bool = False
    """Whether an ingest that is published asks for everything again, once each time the pipeline
    runs; for APIs that always answer with the present state (mode `overwrite`)."""
    needs: tuple[str, ...] | None = None
    """Stages before it whose results it needs. Default: the stage before it."""
    when: Annotated[str, BeforeValidator(_expression)] | None = None
    """Condition without which the stage is skipped. It knows the parameters, `input.changed`,
    `rows` and `published` (of the stage that it needs), and of each stage before it `NAME.rows`,
    `NAME.changed`, `NAME.published` and `NAME.state`."""
    if_skipped: Literal["skip", "run"] = "skip"
    """Whether the stage is skipped too when a stage that it needs was skipped."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        """Name a stage after what it does."""
        if isinstance(data, dict) and not data.get("name"):
            kind = next((kind for kind in KINDS if data.get(kind) is not None), None)
            return {**data, "name": kind} if kind else data
        return data

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError("a stage has one of `ingest`, `map`, `load` and `call`")
        if self.params and self.call is None:
            raise ValueError("`params` belong to `call`; a job's: `set: {params.x: 1}`")
        if self.refresh and self.ingest is None:
            raise ValueError("`refresh` belongs to `ingest`")
        if self.set_ and self.call is not None:
            raise ValueError("`set` changes a file, and `call` has none; use `params`")
        return self

    @property
    def kind(self) -> StageKind:
        """What it does."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


def _parameters(values: dict[str, Parameter]) -> dict[str, Parameter]:
    for name in values:
        if name in RESERVED:
            raise ValueError(f"{name!r} is a word of conditions; choose another name")
        if is_secret_name(name):
            raise ValueError(
                f"{name!r} looks like a secret, and parameters are stored and shown; name a "
                "variable or a Secret block where the secret is used (http.auth, password_env)"
            )
    return values


class PipelineFile(Part):
    """A pipeline, as written in its file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    """Name of the pipeline: letters, digits and `-_.`."""
    state: Uri
    """Prefix where notes on its runs are kept: what each stage has done. Without them, a run checks
    each stage again, and calls each `call` again."""
    parameters: Annotated[
        dict[
            Annotated[str, Field(pattern=NAME)],
            Annotated[
                Parameter,
                BeforeValidator(_type_alone, json_schema_input_type=Parameter | ParameterType),
            ],
        ],
        AfterValidator(_parameters),
    ] = Field(default={})
    """Parameters by name, with their types: `{date: date}`, or with a default
    `{limit: {type: integer, default: 10}}`."""
    pipeline: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=MAX_STAGES)]
    """Stages, in the order in which they run."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        before: list[str] = []
        for stage in self.pipeline:
            if stage.name in before:
                raise ValueError(f"two stages have the name {stage.name!r}: set `name`")
            if stage.name in (*RESERVED, *self.parameters):
                raise ValueError(
                    f"a stage cannot have the name {stage.name!r}, which conditions know as "
                    "something else"
                )
            for need in stage.needs or ():
                if need not in before:
                    near = nearest(need, before)
                    raise ValueError(
                        f"stage {stage.name} needs {need!r}, which is no stage before it"
                        + (f"; did you mean {near}?" if near else "")
                    )
            before.append(stage.name)
        return self

    def needs(self, stage: Stage) -> tuple[str, ...]:
        """Return the names of the stages that a stage needs."""
        if stage.needs is not None:
            return stage.needs
        names = [other.name for other in self.pipeline]
        at = names.index(stage.name)
        return tuple(names[at - 1 : at]) if at else ()

    def kinds(self, stage: Stage) -> dict[str, Kind]:
        """Return the names that a stage's condition may use, with their kinds."""
        kinds = {name: _KIND_OF_TYPE[p.type] for name, p in self.parameters.items()}
        needs = self.needs(stage)
        if needs:
            kinds["input.changed"] = "boolean"
        if len(needs) == 1:
            kinds |= OWN_FACTS
        for other in self.pipeline:
            if other.name == stage.name:
                break
            kinds |= {f"{other.name}.{fact}": kind for fact, kind in STAGE_FACTS.items()}
        return kinds


@dataclass(frozen=True)
class Call:
    """What a stage of kind `call` does."""

    function: str
    params: Mapping[str, Any]

    def to_yaml(self) -> str:
        """Return it as text, for digests."""
        return dump_yaml({"call": self.function, "params": dict(self.params)})


Definition = Ingest | Job | LoadFile | Call


@dataclass(frozen=True)
class ResolvedStage:
    """A stage with its definition, in which parameters have their values."""

    name: str
    kind: StageKind
    definition: Definition
    source: str
    """File or function, for people."""
    needs: tuple[str, ...]
    when: str | None = None
    runs_if_skipped: bool = False
    refresh: bool = False

    @cached_property
    def condition(self) -> Node | None:
        """The condition; its kinds were checked."""
        return None if self.when is None else parse(self.when)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline with the values of its parameters: what is run."""

    name: str
    state: str
    """URI of the prefix of its notes."""
    parameters: Mapping[str, Value]
    stages: tuple[ResolvedStage, ...]
    source: str = "pipeline.yaml"
    """Its file, for messages."""

    @cached_property
    def run(self) -> str:
        """Id of the run of these parameters: the same pipeline and parameters have the same id."""
        values = {name: text_of(value) for name, value in self.parameters.items()}
        text = json.dumps([self.name, values], sort_keys=True)
        return hashlib.sha256(f"pipeline {text}".encode()).hexdigest()[:16]

    def needs_prefect(self, names: Collection[str]) -> bool:
        """Whether one of these stages needs Prefect: it maps, or its secret is in a block."""
        chosen = [each.definition for each in self.stages if each.name in names]
        return any(isinstance(each, Job) or _has_secret_block(each) for each in chosen)

    def with_secret_block(self, names: Collection[str]) -> list[str]:
        """Return those of these stages whose secret is in a Secret block of Prefect."""
        chosen = [each for each in self.stages if each.name in names]
        return [each.name for each in chosen if _has_secret_block(each.definition)]

    @property
    def label(self) -> str:
        """The parameters for people: `date 2024-03-01, limit 10`."""
        return ", ".join(f"{name} {text_of(value)}" for name, value in self.parameters.items())


def _outputs(definition: Definition) -> list[str]:
    """Return the URIs of the outputs that a definition writes or reads."""
    if isinstance(definition, Job):
        return [output.uri for output in definition.all_outputs.values()]
    if isinstance(definition, Ingest):
        return [definition.output.uri]
    return [definition.input.uri] if isinstance(definition, LoadFile) else []


def _has_secret_block(definition: Definition) -> bool:
    if isinstance(definition, Ingest):
        auth = definition.http.auth if definition.http else None
        places = (auth, definition.sql.url if definition.sql else None)
        return any(place is not None and place.secret is not None for place in places)
    return isinstance(definition, LoadFile) and definition.into.secret_block is not None


@dataclass(frozen=True)
class PipelineSource:
    """A pipeline file that was read: parameters may be given to it."""

    file: PipelineFile
    yaml: YamlFile
    folder: Path
    """Folder that files of stages are relative to."""
    _files: dict[str, YamlFile] = field(default_factory=dict)
    """Files of stages that were read, by path."""

    @property
    def date_parameter(self) -> str:
        """Name of the date that windows are made of.

        Raises:
            PipelineFileError: There is no date, or several of which none has the name `date`.
        """
        dates = [name for name, p in self.file.parameters.items() if p.type == "date"]
        if "date" in dates or len(dates) == 1:
            return "date" if "date" in dates else dates[0]
        have = f"several dates: {', '.join(dates)}" if dates else "no date among its parameters"
        raise PipelineFileError(
            f"{self.yaml.name} has {have}",
            hint="name one of its parameters `date`: `parameters: {date: date}`",
        )

    def to_yaml(self) -> str:
        """Return the text of the pipeline and of the files of its stages, as one file.

        Raises:
            JobError, LoadFileError: A file is missing, or not YAML.
        """
        data = copy.deepcopy(self.yaml.data)
        for index, stage in enumerate(self.file.pipeline):
            if stage.kind != "call":
                error = LoadFileError if stage.kind == "load" else JobError
                data["pipeline"][index][stage.kind] = self._yaml_of(stage, index, error).data
        return dump_yaml(data)

    def resolve(
        self, given: Mapping[str, Any] | None = None, today: date | None = None
    ) -> Pipeline:
        """Return the pipeline with these values of its parameters.

        Args:
            given: The values; parameters that are not given have their defaults.
            today: Date that `today` and `yesterday` count from; default the present one in UTC.

        Raises:
            PipelineFileError: A parameter is unknown, missing or of another type, or a template is
                wrong.
            JobError, LoadFileError: A definition is wrong; the message names file and line.
        """
        values = self._values(given or {}, today)
        stages = tuple(
            self._stage(stage, index, values) for index, stage in enumerate(self.file.pipeline)
        )
        self._refuse_state_in_outputs(stages)
        return Pipeline(self.file.name, self.file.state, values, stages, self.yaml.name)

    def _refuse_state_in_outputs(self, stages: Iterable[ResolvedStage]) -> None:
        state = as_prefix(parse_uri(self.file.state).uri)
        for stage in stages:
            for output in _outputs(stage.definition):
                if state.startswith(as_prefix(parse_uri(output).uri)):
                    raise PipelineFileError(
                        f"{self.yaml.where(('state',))}: state {self.file.state} is in output "
                        f"{output} of stage {stage.name}, which holds published Parquet only",
                        hint="choose another prefix, next to it",
                    )

    def _values(self, given: Mapping[str, Any], today: date | None) -> dict[str, Value]:
        known, name = self.file.parameters, self.yaml.name
        for unknown in (key for key in given if key not in known):
            near = nearest(unknown, list(known))
            raise PipelineFileError(
                f"{name} has no parameter {unknown!r}",
                hint=f"did you mean {near}?" if near else f"it has: {', '.join(known) or 'none'}",
            )
        values: dict[str, Value] = {}
        for key, parameter in known.items():
            value = given.get(key, parameter.default)
            if value is None:
                raise PipelineFileError(
                    f"{name}: parameter {key} has no value",
                    hint=f"give it: --param {key}={_EXAMPLES[parameter.type]}, or set its default",
                )
            try:
                values[key] = parameter_value(parameter.type, value, today)
            except ValueError as problem:
                raise PipelineFileError(f"{name}: parameter {key}: {problem}") from None
        return values

    def _stage(self, stage: Stage, index: int, values: Mapping[str, Value]) -> ResolvedStage:
        given = getattr(stage, stage.kind)
        definition: Definition
        if stage.kind == "call":
            data = YamlFile(self.yaml.name, stage.params, self._lines(index, "params"))
            filled = fill(data, values, PipelineFileError).data
            definition = Call(given, filled)
        else:
            definition = self._definition(stage, index, values)
        return ResolvedStage(
            name=stage.name,
            kind=stage.kind,
            definition=definition,
            source=given if isinstance(given, str) else self.yaml.name,
            needs=self.file.needs(stage),
            when=stage.when,
            runs_if_skipped=stage.if_skipped == "run",
            refresh=stage.refresh,
        )

    def _definition(
        self, stage: Stage, index: int, values: Mapping[str, Value]
    ) -> Ingest | Job | LoadFile:
        error: type[UsageError] = LoadFileError if stage.kind == "load" else JobError
        file = self._yaml_of(stage, index, error)
        changes = {
            tuple(key.split(".")): (value, self.yaml.where(("pipeline", index, "set", key)))
            for key, value in stage.set_.items()
        }
        file = fill(set_values(file, changes, error), values, error)
        if stage.kind == "ingest":
            return validate(file, Ingest, error)
        return (
            validate(file, Job, error) if stage.kind == "map" else validate(file, LoadFile, error)
        )

    def _yaml_of(self, stage: Stage, index: int, error: type[UsageError]) -> YamlFile:
        """Return the file of a stage, or the keys that it holds itself."""
        given = getattr(stage, stage.kind)
        if not isinstance(given, str):
            return YamlFile(self.yaml.name, given, self._lines(index, stage.kind))
        if given not in self._files:
            self._files[given] = read_yaml(self.folder / given, error)
        return self._files[given]

    def _lines(self, index: int, key: str) -> dict[Location, int]:
        """Return the lines of what a stage holds itself, by their place in it."""
        above: Location = ("pipeline", index, key)
        return {
            at[len(above) :]: line
            for at, line in self.yaml.lines.items()
            if at[: len(above)] == above
        }


_EXAMPLES = {
    "date": "2024-03-01",
    "integer": "10",
    "number": "0.5",
    "string": "TEXT",
    "boolean": "true",
}


def read_pipeline(path: str | Path, changes: Sequence[str] = ()) -> PipelineSource:
    """Read a pipeline file.

    Args:
        path: The file; `-` is standard input.
        changes: Values to set or replace, such as `state=s3://other/`, in the syntax of YAML.

    Raises:
        PipelineFileError: The file is missing or wrong; the message names file and line.
    """
    path = Path(path)
    folder = Path() if path == STANDARD_INPUT else path.parent
    file = read_yaml(path, PipelineFileError)
    return _source(change_yaml(file, changes, "--set", PipelineFileError), folder)


def parse_pipeline(
    text: str, name: str = "pipeline.yaml", folder: str | Path = "."
) -> PipelineSource:
    """Read the text of a pipeline file; `name` is for messages. Raises as `read_pipeline`."""
    return _source(parse_yaml(text, name, PipelineFileError), Path(folder))


def _source(yaml: YamlFile, folder: Path) -> PipelineSource:
    file = validate(yaml, PipelineFile, PipelineFileError)
    source = PipelineSource(file, yaml, folder)
    for index, stage in enumerate(file.pipeline):
        if stage.when is None:
            continue
        try:
            kind = parse(stage.when).kind(file.kinds(stage))
            if kind != "boolean":
                raise ExpressionError("a condition compares something: `rows > 0`")
        except ExpressionError as problem:
            at = yaml.where(("pipeline", index, "when"))
            raise PipelineFileError(
                f"{at}: `when: {stage.when}` of stage {stage.name}: {problem}"
            ) from None
    return source


def parameter_values(options: Iterable[str]) -> dict[str, str]:
    """Return the values of the options `--param NAME=VALUE`, by name.

    Raises:
        PipelineFileError: An option is not NAME=VALUE.
    """
    values = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals:
            raise PipelineFileError(f"--param {text} is not NAME=VALUE", hint="--param country=DE")
        values[name.strip()] = value
    return values


def dates(start: date, end: date, days: int = 1) -> Iterable[date]:
    """Return the dates from a start to an end, which is not among them, every so many days."""
    while start < end:
        yield start
        start += timedelta(days=days)
