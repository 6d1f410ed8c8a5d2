"""Refuse a job whose input matches its own output, however their URIs are spelled.

The next run would read what this one wrote, and an appending job would grow without end. A job that
keeps columns may change the files that it reads (see `in_place`).
"""

from __future__ import annotations

from partitioning.globs import compile_glob, has_magic, literal_prefix, matches_any
from partitioning.listing import is_hidden
from pipeline.config.job import Job, Output
from pipeline.errors import UsageError
from pipeline.table.output_uri import refuse_ambiguous_output, segments, state_folder
from pipeline.uris import as_prefix, parse

FILE_START = "part-"
"""Prefix of the names of published files (see `pipeline.runs.worker.chunk.output_uri`)."""
_EXAMPLE = FILE_START + "0000000-0123456789abcdef.parquet"
_SUFFIXES = (".parquet", ".parq", ".pq")


def refuse_overlap(job: Job) -> None:
    """Compare a job's input with its outputs. Reads nothing but links of the file system.

    A job in place is not refused here (see `is_in_place`).

    Raises:
        UsageError: the input matches an output; outputs lie within each other; input or output lies
            in an output's state; or some S3 services would take the output's URI for another
            prefix.
    """
    for output in job.all_outputs.values():
        _refuse_input(job, output.uri)
    refuse_nested_outputs(job)


def refuse_nested_outputs(job: Job) -> None:
    """Refuse outputs that are the same folder, or lie within each other. Raises UsageError."""
    uris = [output.uri for output in job.all_outputs.values()]
    for at, uri in enumerate(uris):
        for other in uris[:at]:
            if lie_within(uri, other):
                raise UsageError(
                    f"outputs {other} and {uri} lie within each other",
                    hint="choose outputs outside of each other",
                )


def is_in_place(job: Job) -> bool:
    """Whether a job replaces the files that it reads, which keep columns as they are.

    Its input is its output, and each file is made of the one that it replaces.
    """
    return (
        job.replaces_what_it_keeps
        and job.input.table is None
        and len(job.input.uri) == 1
        and not has_magic(job.input.uri[0])
        and segments(job.input.uri[0]) == segments(job.output.uri)
    )


def refuse_in_place(job: Job, what: str) -> None:
    """Refuse a job in place where each file must be replaced exactly once, together.

    Raises:
        UsageError: the job is in place.
    """
    if is_in_place(job):
        raise own_input(job.input.uri[0], job.output.uri, f"{what} cannot change its own input: ")


def own_input(uri: str, output: str, why: str = "") -> UsageError:
    """Return the error for an input that is the output of its own job."""
    return UsageError(
        f"{why}input {uri} and output {output} lie within each other: "
        "the next run would read what this one wrote",
        hint="choose an output outside of the input; or, to change files where they are: chunkmap "
        f"adopt {output}, then a run of a job with this input and output, output.keep, and "
        "output.mode overwrite or overwrite-partitions",
    )


def lie_within(one: str, other: str) -> bool:
    """Whether a URI is the same folder as another, or one lies in the other; resolves links."""
    parts, others = segments(one), segments(other)
    return _is_within(parts, others) or _is_within(others, parts)


def _refuse_input(job: Job, output: str) -> None:
    """Compare a job's input with one of its outputs. Raises as `refuse_overlap`."""
    refuse_ambiguous_output(output)
    target = segments(output)
    for uri in job.input.uri:
        if state_folder(segments(uri)):
            raise UsageError(
                f"input {uri} lies in the state folder of an output, which is not data",
                hint="read the output itself; older versions: pipeline.scan_output(uri, version)",
            )
        if lie_within(uri, output):
            if is_in_place(job):
                continue
            raise own_input(uri, output)
        if has_magic(uri) and _may_match(segments(uri, glob=True), target):
            if _left_out(uri, output, job.input.exclude):
                continue
            raise UsageError(
                f"input {uri} matches the output {output}: "
                "the next run would read what this one wrote",
                hint="choose an output that the input does not match, or add it to input.exclude",
            )


def normalize_uris(job: Job) -> Job:
    """Return the job with its URIs in normal form."""
    source: dict[str, object] = {"uri": tuple(parse(uri).uri for uri in job.input.uri)}
    if job.input.table is not None:
        table = as_prefix(parse(job.input.table).uri)
        source = {"uri": (table,), "table": table}

    def normal(output: Output) -> Output:
        return output.model_copy(update={"uri": as_prefix(parse(output.uri).uri)})

    return job.model_copy(
        update={
            "input": job.input.model_copy(update=source),
            "output": normal(job.output),
            "outputs": {name: normal(output) for name, output in job.outputs.items()},
        }
    )


def _is_within(inner: list[str], outer: list[str]) -> bool:
    return inner[: len(outer)] == outer


def _may_match(pattern: list[str], output: list[str]) -> bool:
    """Whether a glob may match something that is published to an output.

    A glob that matches a folder matches everything below it.
    """
    if not pattern:
        return True
    if not output:
        return all(map(_may_be_published, pattern))
    first = pattern[0]
    if first == "**":
        return _may_match(pattern[1:], output) or _may_match(pattern, output[1:])
    head, crosses, _ = first.partition("**")
    if crosses:
        return compile_glob(head + "*").fullmatch(output[0]) is not None
    if compile_glob(first).fullmatch(output[0]) is None:
        return False
    return _may_match(pattern[1:], output[1:])


def _may_be_published(name: str) -> bool:
    """Whether a segment of a glob may match a Hive folder or a file that a run writes."""
    if not has_magic(name):
        return "=" in name
    if not name.lower().endswith(_SUFFIXES):
        return True
    start = literal_prefix(name)
    return FILE_START.startswith(start) or start.startswith(FILE_START)


def _left_out(uri: str, output: str, exclude: tuple[str, ...]) -> bool:
    """Whether listing the input skips the output: as a hidden name, or by `input.exclude`."""
    fixed = literal_prefix(parse(uri).uri)
    base, prefix = fixed[: fixed.rfind("/") + 1], as_prefix(parse(output).uri)
    if not prefix.startswith(base):
        return False
    folder = prefix[len(base) :]
    paths = (folder + _EXAMPLE, f"{folder}any-column=any-value/{_EXAMPLE}")
    return all(is_hidden(path) or matches_any(exclude, path) for path in paths)
