"""List the objects of an input: prefixes, objects, globs, without hidden and empty objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress

from partitioning.errors import MissingFilesError, NoParquetError, PlanningError, WindowError
from partitioning.globs import compile_glob, has_magic, literal_prefix, matches_any
from partitioning.hive_paths import raw_values
from partitioning.model import ObjectInfo
from partitioning.reader import Reader
from partitioning.request import PinnedFiles, PlanRequest
from partitioning.table_formats import TableRoot, refuse_inside_tables, refuse_tables, table_root
from partitioning.windows import WindowFilter, no_column

_SUFFIXES = (".parquet", ".parq", ".pq")
_STATE_SUFFIX = ".chunkmap"
"""Suffix of folders with an output's state and its replaced files."""
_HEADS_IN_FLIGHT = 32
"""Number of HEAD requests in flight for an explicit list."""


@dataclass(slots=True)
class Listing:
    """The objects of an input, and the numbers of objects that are left out."""

    objects: list[ObjectInfo] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    """Directory of each object below its prefix, which may have Hive values."""
    listed: int = 0
    requests: int = 0
    """Number of requests, at least: a listing counts its pages of 1,000."""
    hidden: int = 0
    empty: int = 0
    unnamed: int = 0
    """Objects without a Parquet name."""
    unnamed_example: str = ""
    """URI of the first of these."""
    excluded: int = 0
    """Objects left out by `include` or `exclude`."""
    outside: int = 0
    """Objects outside the windows of the request."""
    outside_directories: set[str] = field(default_factory=set)
    """Directories of these objects, whose values affect the types of Hive columns."""
    tables: dict[str, TableRoot] = field(default_factory=dict)
    """Folders of table formats among the listed objects, by URI."""


def list_objects(request: PlanRequest, reader: Reader) -> Listing:
    """List the input once, in no particular order; an object named twice counts once.

    Raises:
        NoParquetError: The input, or an item of a list, has no object.
        MissingFilesError: A file of `request.pinned` does not exist.
        TableFormatError: The input is in the folder of a Delta Lake, Iceberg or Hudi table.
        WindowError: `request.keep` does not fit the Hive columns or their values.
        PlanningError: The name of an object is not UTF-8.
    """
    uris = request.uri if isinstance(request.uri, tuple) else (request.uri,)
    if not uris:
        raise NoParquetError("the input is an empty list")
    if request.pinned is not None:
        return _list_pinned(uris[0], request.pinned, request, reader)
    listing = Listing()
    seen: set[str] = set()
    heads = _heads([u for u in uris if not u.endswith("/")], reader, listing)
    for uri in uris:
        count = 0
        for info, base, hive in _resolve(uri, heads.get(uri), reader, listing):
            count += 1
            if info.uri in seen:
                continue
            seen.add(info.uri)
            _take(info, base, hive, request, listing, explicit=info is heads.get(uri))
        if not count:
            raise NoParquetError(f"no object at {uri}")
    listing.listed = len(seen)
    refuse_tables(listing.tables.values(), (info.uri for info in listing.objects))
    listing.requests += refuse_inside_tables(_unlisted_above(uris), reader)
    if request.keep is not None and listing.objects:
        _keep_windows(listing, request.keep, lenient=request.schema == "union")
    if not listing.objects:
        raise NoParquetError(_explain_empty(uris, listing))
    _refuse_other_encodings(listing)
    return listing


def _refuse_other_encodings(listing: Listing) -> None:
    """Refuse names of local files that are not UTF-8, which a plan cannot hold."""
    for info in listing.objects:
        try:
            info.uri.encode()
        except UnicodeEncodeError:
            name = info.uri.encode(errors="backslashreplace").decode()
            raise PlanningError(f"{name}: its name is not UTF-8: rename or exclude it") from None


def _list_pinned(prefix: str, pinned: PinnedFiles, request: PlanRequest, reader: Reader) -> Listing:
    """List the files of a version of a table.

    Raises:
        NoParquetError: The version has no files.
        MissingFilesError: A file is missing, or is another version than the log says.
    """
    if not pinned.directories:
        raise NoParquetError(f"{pinned.label} has no files")
    listing = Listing()
    for info in _count_requests(reader.list(prefix), listing):
        listing.listed += 1
        if info.uri in pinned.directories:
            listing.objects.append(info)
            listing.directories.append(pinned.directories[info.uri])
    missing = sorted(pinned.directories.keys() - {info.uri for info in listing.objects})
    if missing:
        raise MissingFilesError(
            f"{len(missing):,} of {len(pinned.directories):,} files of {pinned.label} do not exist "
            f"any more, for example {missing[0]}"
        )
    for info in listing.objects:
        if info.size != pinned.sizes[info.uri]:
            raise MissingFilesError(
                f"{info.uri} has {info.size:,} bytes, and {pinned.sizes[info.uri]:,} in the log of "
                f"{pinned.label}: it was overwritten"
            )
        etag = info.etag.strip('"')
        if pinned.etags.get(info.uri, etag) != etag:
            raise MissingFilesError(
                f"{info.uri} has the version {etag}, and {pinned.etags[info.uri]} in {pinned.label}"
                ": it was overwritten"
            )
    if request.keep is not None:
        _keep_windows(listing, request.keep, lenient=False)
    return listing


def _unlisted_above(uris: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield each item of an input, with a URI above which folders have not been listed."""
    for uri in uris:
        fixed = literal_prefix(uri)
        # For an object or a glob its own folder has not been listed completely either.
        yield uri, uri if uri.endswith("/") else fixed[: fixed.rfind("/") + 1] + "*"


def _explain_empty(uris: tuple[str, ...], listing: Listing) -> str:
    counts = (
        (listing.unnamed, "not named *.parquet, *.parq or *.pq (select them with include)"),
        (listing.excluded, "left out by include and exclude"),
        (listing.hidden, "hidden (a name that begins with _ or .)"),
        (listing.empty, "empty"),
        (listing.outside, "outside the windows"),
    )
    reasons = ", ".join(f"{count} {reason}" for count, reason in counts if count)
    where = uris[0] if len(uris) == 1 else f"{uris[0]} and {len(uris) - 1} more"
    return f"no Parquet object at {where}: of {listing.listed} objects, {reasons}"


def _keep_windows(listing: Listing, keep: WindowFilter, *, lenient: bool) -> None:
    columns, keeps = keep.windowing.columns, keep.decider()
    raws = {directory: dict(raw_values(directory)) for directory in set(listing.directories)}
    for column in columns:
        if not any(column in names for names in raws.values()):
            raise no_column(column, sorted(set().union(*raws.values())))
    verdicts = {}
    for directory, values in raws.items():
        if not lenient and (lacking := [name for name in columns if name not in values]):
            example = min(
                info.uri
                for info, own in zip(listing.objects, listing.directories, strict=True)
                if own == directory
            )
            raise WindowError(f"partition column {lacking[0]!r} is not in the key of {example}")
        verdicts[directory] = keeps(values)
    kept = [verdicts[directory] for directory in listing.directories]
    listing.outside = len(kept) - sum(kept)
    listing.outside_directories = {d for d, verdict in verdicts.items() if not verdict}
    listing.objects = list(compress(listing.objects, kept))
    listing.directories = list(compress(listing.directories, kept))


def _heads(uris: list[str], reader: Reader, listing: Listing) -> dict[str, ObjectInfo]:
    def head(uri: str) -> ObjectInfo | None:
        try:
            return reader.head(uri)
        except FileNotFoundError:
            return None

    listing.requests += len(uris)
    if len(uris) == 1:
        infos = [head(uris[0])]
    else:
        with ThreadPoolExecutor(_HEADS_IN_FLIGHT) as pool:
            infos = list(pool.map(head, uris))
    return {u: info for u, info in zip(uris, infos, strict=True) if info is not None}


def _resolve(
    uri: str, head: ObjectInfo | None, reader: Reader, listing: Listing
) -> Iterator[tuple[ObjectInfo, str, str]]:
    """Yield (object, prefix for patterns, prefix for Hive values) of an item of the input."""
    if head is not None and head.size:
        _note_table(head, listing)
        yield head, uri.rpartition("/")[0] + "/", _root(uri)
        return
    # No object, or an empty object, which some tools use to mark a directory.
    prefix = uri if uri.endswith("/") else uri + "/"
    found = False
    for info in _count_requests(reader.list(prefix), listing):
        found = True
        yield info, prefix, prefix
    if not found and head is not None:
        yield head, uri.rpartition("/")[0] + "/", _root(uri)
    if found or head is not None or not has_magic(uri):
        return
    fixed = literal_prefix(uri)
    base = fixed[: fixed.rfind("/") + 1]
    keeps = _glob(uri)
    for info in _count_requests(reader.list(fixed), listing):
        if keeps(info.uri):
            yield info, base, base


def _glob(pattern: str) -> Callable[[str], bool]:
    # A glob may match directories, whose objects are then included, as for a prefix.
    exact = compile_glob(pattern)
    below = compile_glob(pattern if pattern.endswith("**") else pattern.rstrip("/") + "/**")
    return lambda uri: bool(exact.fullmatch(uri) or below.fullmatch(uri))


def _count_requests(objects: Iterator[ObjectInfo], listing: Listing) -> Iterator[ObjectInfo]:
    count = 0
    for info in objects:
        count += 1
        _note_table(info, listing)
        yield info
    listing.requests += max(1, -(-count // 1000))


def _note_table(info: ObjectInfo, listing: Listing) -> None:
    root = table_root(info.uri)
    if root is not None:
        listing.tables.setdefault(root.uri, root)


def _root(uri: str) -> str:
    """Return scheme and bucket: for a single object, all its directories have Hive values."""
    scheme, separator, rest = uri.partition("://")
    return scheme + separator + rest[: rest.find("/") + 1] if separator else ""


def _take(
    info: ObjectInfo,
    base: str,
    hive: str,
    request: PlanRequest,
    listing: Listing,
    *,
    explicit: bool,
) -> None:
    path = info.uri[len(base) :]
    if path.endswith("/") or (info.size == 0 and not path.lower().endswith(_SUFFIXES)):
        # It marks a directory. With a Parquet name, an empty object is bad: a lost upload.
        listing.empty += 1
    elif not explicit and is_hidden(path):
        listing.hidden += 1
    elif request.include and not matches_any(request.include, path):
        listing.excluded += 1
    elif not request.include and not explicit and not path.lower().endswith(_SUFFIXES):
        listing.unnamed += 1
        listing.unnamed_example = min(listing.unnamed_example or info.uri, info.uri)
    elif request.exclude and matches_any(request.exclude, path):
        listing.excluded += 1
    else:
        listing.objects.append(info)
        listing.directories.append(info.uri[len(hive) :].rpartition("/")[0])


def is_hidden(path: str) -> bool:
    """Whether a segment begins with _ or . (a Hive directory `_x=1` is not hidden).

    The folder `<output>.chunkmap/`, which is the state of an output, is hidden too.
    """
    *directories, name = path.split("/")
    if name[:1] in ("_", "."):
        return True
    return any(
        (d[:1] in ("_", ".") and "=" not in d) or d.endswith(_STATE_SUFFIX) for d in directories
    )
