"""Show the first rows of an output: `chunkmap head`."""

from __future__ import annotations

from pipeline.cli.output import out, print_json
from pipeline.config.settings import load_settings


def head(
    output: str, environment: str | None, *, rows: int, version: int | None, as_json: bool
) -> None:
    """Print the first rows of an output in one version."""
    settings = load_settings(environment)
    import polars as pl

    from pipeline.runs.driver.preflight import explain_unreachable_s3
    from pipeline.table.scan import scan

    with explain_unreachable_s3(settings):
        frame = scan(settings, output, version).head(rows).collect()
    if as_json:
        columns = {name: str(kind) for name, kind in frame.schema.items()}
        print_json({"output": output, "columns": columns, "rows": frame.to_dicts()})
        return
    with pl.Config(
        tbl_rows=max(1, rows), tbl_cols=-1, tbl_hide_dataframe_shape=True, tbl_width_chars=out.width
    ):
        out.print(str(frame))
