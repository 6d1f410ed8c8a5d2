"""Read an output and its versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chunkmap.places import current
from pipeline.config.settings import Settings

if TYPE_CHECKING:
    import polars as pl

    from pipeline.runs.admin.vacuum import VacuumResult
    from pipeline.runs.admin.verify import Verification
    from pipeline.table.adopt import Adoption


def scan(uri: str, version: int | None = None, window: str | None = None) -> pl.LazyFrame:
    """Scan the rows of an output in one version.

    Args:
        uri: Prefix of the output.
        version: Number of a version (`history` lists them); default the current.
        window: Label of a backfill's window, such as `2024-02-29`; default all.

    Raises:
        UsageError: The output has no published files, or no such window.
        FilesMissingError: That version is no longer kept.
    """
    return scan_with(current().settings, uri, version, window)


def scan_with(
    settings: Settings, uri: str, version: int | None = None, window: str | None = None
) -> pl.LazyFrame:
    """Scan as `scan` does, with these settings."""
    from pipeline.table.scan import scan as scan_version
    from pipeline.uris import parse

    return scan_version(settings, parse(uri).uri, version, window)


def history(uri: str) -> pl.DataFrame:
    """List the versions of an output, newest first.

    Returns:
        Columns: version, published (UTC), action, runs, files, rows, bytes. Figures are of what a
        version adds; those of a rollback are 0.
    """
    import polars as pl

    table_log = _log(uri)
    current_version = table_log.head()[0].current
    rows: list[dict[str, Any]] = []
    for number in range(1, current_version + 1):
        manifest, added = table_log.manifest(number), table_log.added(number)
        back = manifest.rollback_of
        action = ", ".join(dict.fromkeys(entry.mode for entry in added))
        rows.append(
            {
                "version": number,
                "published": manifest.created,
                "action": action if back is None else f"rollback to {back}",
                "runs": list(dict.fromkeys(entry.run for entry in added if entry.run))
                if back is None
                else [],
                **{
                    name: sum(getattr(entry, name) for entry in added) if back is None else 0
                    for name in ("files", "rows", "bytes")
                },
            }
        )
    schema: dict[str, Any] = {
        "version": pl.Int64,
        "published": pl.Float64,
        "action": pl.String,
        "runs": pl.List(pl.String),
        **dict.fromkeys(("files", "rows", "bytes"), pl.Int64),
    }
    frame = pl.DataFrame(rows[::-1], schema=schema)
    published = pl.from_epoch((pl.col("published") * 1e6).cast(pl.Int64), time_unit="us")
    return frame.with_columns(published=published.dt.replace_time_zone("UTC"))


def rollback(uri: str, to: int | None = None) -> int:
    """Make an older version current again.

    Args:
        uri: Prefix of the output.
        to: Number of the version; default the one before the current.

    Returns:
        The number of the new version, which has the files of the old one.
    """
    from pipeline.table import publish

    return publish.rollback(_log(uri), to).number


def adopt(uri: str, *, dry_run: bool = False) -> Adoption:
    """Take the Parquet files of a prefix into a first version of it, without touching them.

    A job may then have the prefix as its input and as its output, if its files keep columns and
    its mode is "overwrite" or "overwrite-partitions". Files that a run replaces are kept for
    `rollback`, and deleted with the last of `output.keep_versions` that has them, although chunkmap
    did not write them. Doing it twice changes nothing; new files are taken by a further version.

    Args:
        uri: Prefix of the files, which becomes an output.
        dry_run: Only return what would be adopted.
    """
    from pipeline.storage import open_storage
    from pipeline.table.adopt import adopt as take
    from pipeline.uris import parse

    return take(open_storage(current().settings), parse(uri).uri, dry_run=dry_run)


def verify(uri: str) -> Verification:
    """Check every file of an output against its manifest; `problems` is empty if all is well."""
    from pipeline.runs.admin.verify import verify_output
    from pipeline.storage import open_storage
    from pipeline.uris import parse

    return verify_output(open_storage(current().settings), parse(uri).uri)


def vacuum(uri: str, *, older_than: str | float = "7d", dry_run: bool = False) -> VacuumResult:
    """Abort abandoned uploads, and move files aside that no version names.

    Args:
        uri: Prefix of the output.
        older_than: Keep what is younger: seconds, or such as "7d".
        dry_run: Only return what would change.
    """
    from pipeline.config.units import parse_seconds
    from pipeline.ingest.vacuum import ingest_states
    from pipeline.runs.admin import vacuum as vacuuming
    from pipeline.storage import open_storage
    from pipeline.uris import parse

    storage, output = open_storage(current().settings), parse(uri).uri
    age = parse_seconds(older_than) if isinstance(older_than, str) else older_than
    return vacuuming.vacuum(
        storage,
        output,
        older_than=age,
        dry_run=dry_run,
        discard=[],
        others=ingest_states(storage, output).finished,
    )


def _log(uri: str) -> Any:
    from pipeline.storage import open_storage
    from pipeline.table.log import TableLog
    from pipeline.uris import parse

    return TableLog(open_storage(current().settings), parse(uri).uri)
