"""Make existing files an output: `chunkmap adopt`."""

from __future__ import annotations

from pipeline.cli.output import print_json, say, warn
from pipeline.config.settings import load_settings
from pipeline.report.humanize import byte_size, plural


def adopt(prefix: str, environment: str | None, *, dry_run: bool, as_json: bool) -> None:
    """Adopt the Parquet files of a prefix, and say what becomes of them."""
    settings = load_settings(environment)

    from pipeline.runs.admin.known_outputs import remember_output
    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.storage import open_storage
    from pipeline.table.adopt import adopt as take

    with explain_unreachable_s3(settings):
        done = take(open_storage(settings), prefix, dry_run=dry_run)
    if not dry_run:
        remember_output(settings.state_dir, done.output)
    if as_json:
        print_json(done)
        return
    figures = f"{plural(done.files, 'file')}, {done.rows:,} rows, {byte_size(done.bytes)}"
    if not done.files:
        say(f"{done.output}: nothing to adopt; version {done.manifest} has all files")
        return
    if dry_run:
        say(f"{done.output}: {figures} would be adopted (nothing was written)")
    else:
        say(f"{done.output}: {figures} adopted as version {done.manifest}; none was touched")
    say(f"  columns: {', '.join(f'{name} {kind}' for name, kind in done.columns.items())}")
    warn(
        "chunkmap owns these files from then on: a run that replaces them moves them to "
        f"{done.replaced_in}, and they are deleted for good with the last kept version that has "
        "them (output.keep_versions, 1 by default); nothing else may write to the prefix"
    )
