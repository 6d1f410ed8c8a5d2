"""What OpenLineage events say of a run, a backfill, an ingest or a load.

Datasets are named as OpenLineage's specification names those of each system, without credentials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from partitioning import Plan
from partitioning.globs import has_magic
from pipeline.config.ingest import Ingest, SecretPlace, is_url
from pipeline.config.job import Job
from pipeline.config.load_file import LoadFile, LoadInto, delta_uri, duckdb_path, kind_of
from pipeline.errors import ChunkmapError
from pipeline.ingest.sql import read_url
from pipeline.masking import mask_text
from pipeline.storage import Storage, parse
from pipeline.storage.table_versions import TableVersion
from pipeline.table.log import TableLog
from pipeline.table.schemas import types_of_output

DatasetName = tuple[str, str]
"""Namespace and name of a dataset."""


@dataclass(frozen=True, slots=True)
class InputFacts:
    """A dataset that is read.

    Attributes:
        version: Its version; empty if it has none.
        types: Types of its columns by name; empty if they are not known.
        counts: Rows, bytes and files that are read; None if they are not known.
    """

    dataset: DatasetName
    version: str = ""
    types: Mapping[str, str] = field(default_factory=dict)
    counts: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class LineageFacts:
    """What the events of a run, a backfill, an ingest or a load say.

    Attributes:
        kind: `run`, `backfill`, `ingest` or `load`.
        id: Its id; empty if it is known at the end only.
        name: Name of the job, the ingest or the load.
        outputs: URIs of the outputs that are written.
        into: Destination of a load.
    """

    kind: str
    id: str
    name: str
    inputs: tuple[InputFacts, ...]
    outputs: tuple[str, ...] = ()
    into: DatasetName | None = None


def facts_of_job(
    kind: str, id_: str, job: Job, plan: Plan, tables: tuple[TableVersion, ...]
) -> LineageFacts:
    """Return the facts about a run or a backfill.

    Args:
        kind: `run` or `backfill`.
        id_: Its id.
        job: Its job.
        plan: Its plan; only figures and the schema are read.
        tables: Further tables that the transform reads.
    """
    uris = (job.input.table,) if job.input.table else job.input.uri
    types = {name: str(kind) for name, kind in plan.dtypes.items()}
    # The figures of a plan are those of all its inputs together.
    counts = (plan.rows, plan.stored_bytes, plan.objects) if len(uris) == 1 else None
    inputs = [InputFacts(dataset_name(uri), plan.id, types, counts) for uri in uris]
    inputs += [InputFacts(dataset_name(table.uri), table.label) for table in tables]
    outputs = tuple(output.uri for output in job.all_outputs.values())
    return LineageFacts(kind, id_, job.name, tuple(inputs), outputs)


def facts_of_ingest(
    definition: Ingest, secret_of: Callable[[SecretPlace], str | None]
) -> LineageFacts:
    """Return the facts about an ingest.

    Args:
        definition: Its definition.
        secret_of: Returns the address of a database that is not in the definition.
    """
    inputs = tuple(InputFacts(dataset) for dataset in _sources(definition, secret_of))
    return LineageFacts("ingest", "", definition.name, inputs, (definition.output.uri,))


def _sources(
    definition: Ingest, secret_of: Callable[[SecretPlace], str | None]
) -> list[DatasetName]:
    if definition.http is not None:
        return [_address_name(definition.http.url)]
    if definition.files is not None:
        return list(dict.fromkeys(_file_name(uri) for uri in definition.files.uri))
    if definition.sql is not None:
        try:
            url = read_url(definition.sql.url, secret_of)
        except ChunkmapError:
            return []  # The ingest itself says that the address is missing.
        return [_database_name(url, definition.sql.table)]
    assert definition.source is not None, "an ingest has one source"
    return [("python", definition.source.function)]


def facts_of_load(file: LoadFile, storage: Storage) -> LineageFacts:
    """Return the facts about a load; reads the version of its input."""
    table_log = TableLog(storage, file.input.uri)
    version = file.input.version or table_log.manifest().number
    source = InputFacts(
        dataset_name(file.input.uri), str(version), dict(types_of_output(table_log))
    )
    return LineageFacts("load", "", file.name, (source,), into=_destination(file.into))


def _destination(into: LoadInto) -> DatasetName:
    kind = kind_of(into.uri)
    if kind == "delta":
        return dataset_name(delta_uri(into.uri))
    if kind == "http":
        return _address_name(into.uri)
    if kind == "duckdb":
        return "file", f"{duckdb_path(into.uri)}#{into.table}"
    return _database_name(into.uri, into.table)


def dataset_name(uri: str) -> DatasetName:
    """Return namespace and name of a dataset in S3 or on disk."""
    location = parse(uri)
    path = location.key.rstrip("/")
    if location.scheme == "s3":
        return f"s3://{location.bucket}", path or "/"
    return "file", path or "/"


def _file_name(uri: str) -> DatasetName:
    if is_url(uri):
        return _address_name(uri)
    parts = uri.split("/")
    plain = next((i for i, part in enumerate(parts) if has_magic(part)), len(parts))
    return dataset_name("/".join(parts[:plain]) + ("/" if plain < len(parts) else ""))


def _address_name(url: str) -> DatasetName:
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}", mask_text(parts.path) or "/"


def _database_name(url: str, table: str | None) -> DatasetName:
    """Name a table; of a query, or where the schema is the default one, what is known of it."""
    scheme, _, rest = url.partition(":")
    if not scheme.startswith("postgres"):
        path = rest.removeprefix("//").partition("?")[0]
        return "file", f"{path}#{table}" if table else path
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:  # Several hosts.
        port = None
    host = f"postgres://{parts.hostname or 'localhost'}:{port or 5432}"
    database = unquote(parts.path.strip("/")) or "postgres"
    return host, f"{database}.{table}" if table else database
