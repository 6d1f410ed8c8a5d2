"""Read the contents of files: decompress within a limit, and parse. Pure: bytes in, rows out."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import numpy as np
import polars as pl
import polars.selectors as cs
import zstandard

from pipeline.config.ingest import FileFormatName
from pipeline.ingest.cuts import header_end
from pipeline.ingest.frames import MisfitError, converter, misfit, parse_records, problem_of
from pipeline.ingest.schema import Types
from pipeline.report.humanize import plural

_ENDINGS: Final[dict[str, FileFormatName]] = {
    "csv": "csv",
    "tsv": "csv",
    "ndjson": "ndjson",
    "jsonl": "ndjson",
    "json": "json",
    "parquet": "parquet",
    "parq": "parquet",
    "pq": "parquet",
    "xlsx": "excel",
    "xlsm": "excel",
    "arrow": "arrow",
    "feather": "arrow",
    "ipc": "arrow",
}
_QUICK: Final = (pl.Int64(), pl.Float64(), pl.Boolean())
"""Types of which Polars reads the same values in a CSV file as in texts."""
COMPRESSED: Final = ("gz", "gzip", "zst", "zstd", "zip")
_GZIP, _ZSTD, _ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
COMPRESSED_STARTS: Final = (_GZIP, _ZSTD, _ZIP)
"""First bytes of compressed files."""


class ContentError(ValueError):
    """A file is not what its name or the definition says."""


def format_of(name: str) -> FileFormatName | None:
    """Return the format that a name ends in, without that of its compression; None if unknown."""
    parts = name.lower().split(".")
    while parts and parts[-1] in COMPRESSED:
        parts.pop()
    return _ENDINGS.get(parts[-1]) if parts else None


def decompress(data: bytes, most: int) -> bytes:
    """Return the content of a file; its first bytes say whether it is compressed, and how.

    Raises:
        ContentError: It is damaged, would be larger than `most` bytes, or is an archive of several.
    """
    try:
        if data.startswith(_GZIP):
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
                return _limited(stream.read(most + 1), most)
        if data.startswith(_ZSTD):
            reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
            return _limited(reader.read(most + 1), most)
        if data.startswith(_ZIP):
            return _unzip(data, most)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, zipfile.BadZipFile) as error:
        raise ContentError(f"it cannot be decompressed: {error}") from None
    return _limited(data, most)


def _unzip(data: bytes, most: int) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = [info for info in archive.infolist() if not info.is_dir()]
        if len(files) != 1:
            raise ContentError(f"the archive holds {plural(len(files), 'file')}, not one")
        return _limited(read_entry(archive, files[0], most + 1), most)


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, size: int) -> bytes:
    """Return at most `size` bytes of a file in an archive.

    Raises:
        ContentError: It is encrypted, or compressed otherwise than by deflate, which alone is
            decompressed in steps.
    """
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ContentError("the archive uses a compression that is not read; use deflate")
    try:
        with archive.open(entry) as stream:
            return stream.read(size)
    except RuntimeError as error:
        raise ContentError(f"the archive cannot be read: {error}") from None


def _limited(data: bytes, most: int) -> bytes:
    if len(data) > most:
        raise limit_error(most)
    return data


def limit_error(most: int) -> ContentError:
    """Return the error of a file that is too large."""
    return ContentError(f"it has more than {most:,} bytes (files.max_bytes)")


# -- JSON -----------------------------------------------------------------------------------------


def json_records(data: bytes, path: str | None, *, exact: bool) -> list[dict[str, Any]]:
    """Return the records of a JSON document.

    Raises:
        ContentError: It is not JSON, or has no list of objects there.
    """
    document = _parse(lambda: parse_records(data, exact=exact) if data.strip() else [])
    for name in path.split(".") if path else ():
        if not isinstance(document, dict) or name not in document:
            raise ContentError(f"it has no {path!r} (files.records)")
        document = document[name]
    if isinstance(document, dict):
        document = [document]
    if not isinstance(document, list):
        raise ContentError("it is no list of records (files.records)")
    return _objects(document)


def ndjson_records(data: bytes, *, exact: bool) -> list[dict[str, Any]]:
    """Return the records of lines of JSON.

    Raises:
        ContentError: A line is not JSON, or no object.
    """
    lines = [line for line in data.split(b"\n") if line.strip()]
    return _objects(
        [
            _parse(lambda line=line: parse_records(line, exact=exact), f"line {number}: ")  # type: ignore[misc]
            for number, line in enumerate(lines, 1)
        ]
    )


def _parse(parse: Callable[[], Any], where: str = "") -> Any:
    try:
        return parse()
    except (ValueError, RecursionError) as error:
        raise ContentError(f"{where}it is not JSON: {error}") from None


def _objects(records: list[Any]) -> list[dict[str, Any]]:
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            shown = json.dumps(record, default=str)[:60]
            raise ContentError(f"record {number} is no object with fields: {shown}")
    return records


# -- CSV ------------------------------------------------------------------------------------------


def csv_frame(data: bytes, separator: str, nulls: tuple[str, ...]) -> pl.DataFrame:
    """Return a CSV file as a frame of texts.

    Raises:
        ContentError: It is no CSV file.
    """
    if not data.strip():
        return pl.DataFrame()
    if data.count(b'"') % 2:
        raise ContentError("a quote is never closed")
    return _read_csv(data, separator, nulls, {})


def typed_csv_frame(
    data: bytes, separator: str, nulls: tuple[str, ...], types: Types, where: str
) -> pl.DataFrame:
    """Return a CSV file as a frame of decided types.

    Raises:
        ContentError: It is no CSV file.
        SchemaChangedError: A value does not fit its type.
    """
    # Polars reads an empty text in quotes as no number, whether or not it stands for no value.
    quick = {n: kind for n, kind in types.items() if kind in _QUICK and "" in nulls}
    if quick and data.strip() and not data.count(b'"') % 2:
        with suppress(ContentError):  # The values that do not fit are found in texts.
            frame = _read_csv(data, separator, nulls, quick)
            if not _is_any_infinite(frame):
                return typed_csv(frame, types, where)
    return typed_csv(csv_frame(data, separator, nulls), types, where)


def _is_any_infinite(frame: pl.DataFrame) -> bool:
    """Whether a number is infinite: it may be one that floats do not hold, e.g. 1e400."""
    floats = frame.select(cs.float())
    return any(column.is_infinite().any() for column in floats.get_columns())


def _read_csv(data: bytes, separator: str, nulls: tuple[str, ...], types: Types) -> pl.DataFrame:
    if b"\r" in data.strip() and b"\n" not in data:
        raise ContentError(
            "its lines end in \\r alone, which is not supported; convert them to \\n"
        )
    _refuse_other_encodings(data[: header_end(data) or len(data)])
    try:
        frame = pl.read_csv(
            data,
            separator=separator,
            null_values=list(nulls),
            infer_schema=False,
            schema_overrides=types,
        )
    except (pl.exceptions.PolarsError, ValueError) as error:
        lines = str(error).splitlines() or ["unreadable"]
        raise ContentError(f"it is no CSV file: {lines[0]}") from None
    # Polars refuses rows with too many fields, and fills those with too few.
    if _separators(data, separator) == (frame.height + 1) * (frame.width - 1):
        return frame
    return _without_blank_lines(frame, data, separator)


def _refuse_other_encodings(header: bytes) -> None:
    """Refuse names of columns that are not UTF-8, which Polars would replace in part."""
    try:
        header.decode()
        is_text = b"\0" not in header
    except UnicodeDecodeError:
        is_text = False
    if not is_text:
        raise ContentError(
            "its names of columns are not UTF-8; convert the file, e.g. with iconv -t utf-8"
        )


def _separators(data: bytes, separator: str) -> int:
    """Count the separators that are not in quotes."""
    if b'"' not in data:
        return data.count(separator.encode())
    found = np.frombuffer(data, np.uint8)
    is_quoted = np.cumsum(found == ord('"'), dtype=np.uint8) & 1
    return int(np.count_nonzero((found == ord(separator)) & (is_quoted == 0)))


def _without_blank_lines(frame: pl.DataFrame, data: bytes, separator: str) -> pl.DataFrame:
    """Leave out the rows that are blank lines.

    Raises:
        ContentError: A row has too few fields: the file may have been cut off.
    """
    blank = []
    try:
        text = io.StringIO(data.decode("utf-8-sig"), newline="")
        reader = csv.reader(text, delimiter=separator)
        for number, row in enumerate(reader):
            if not row:
                blank.append(number - 1)
            elif len(row) < frame.width:
                raise ContentError(
                    f"row {number} has {plural(len(row), 'field')}, and there are "
                    f"{plural(frame.width, 'column')}"
                )
    except (csv.Error, UnicodeDecodeError) as error:
        raise ContentError(f"it is no CSV file: {error}") from None
    return frame.with_row_index("").filter(~pl.col("").is_in(blank)).drop("") if blank else frame


def typed_csv(frame: pl.DataFrame, types: Types, where: str) -> pl.DataFrame:
    """Return texts as columns of decided types.

    Raises:
        SchemaChangedError: A value does not fit its type.
    """
    columns = []
    for name, kind in types.items():
        if name not in frame.columns:
            columns.append(pl.Series(name, [None] * frame.height, dtype=kind))
        else:
            columns.append(_typed(frame.get_column(name), kind, where))
    return pl.DataFrame(columns, height=frame.height)


def _typed(column: pl.Series, kind: pl.DataType, where: str) -> pl.Series:
    if kind == column.dtype:
        return column
    if kind == pl.Boolean():
        lower = column.str.to_lowercase()
        cast = lower.replace_strict(
            ["true", "false"], [True, False], default=None, return_dtype=pl.Boolean
        )
    elif kind.is_integer() or kind.is_float():
        cast = column.str.strip_chars().cast(kind, strict=False)
        if kind.is_float():  # E.g. 1e400.
            cast = pl.select(
                pl.when(~(cast.is_infinite() & column.str.contains(r"\d"))).then(cast)
            ).to_series()
    else:
        return _convert_texts(column, kind, where)
    wrong = (cast.is_null() & column.is_not_null()).arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise misfit(column.name, kind, f"row {row + 1} of {where}", f"the text {column[row]!r}")
    return cast


def _convert_texts(column: pl.Series, kind: pl.DataType, where: str) -> pl.Series:
    """Convert texts as those of JSON, each of them once."""
    plain = pl.Datetime(kind.time_unit) if isinstance(kind, pl.Datetime) else kind
    texts = column.drop_nulls().unique(maintain_order=True)
    convert, values = converter(kind), []
    for text in texts:
        try:
            values.append(convert(text))
        except (MisfitError, ArithmeticError) as error:
            row = int((column == text).arg_max() or 0) + 1
            raise misfit(column.name, kind, f"row {row} of {where}", problem_of(error)) from None
    numbers = column.replace_strict(
        texts, pl.Series(range(len(texts)), dtype=pl.UInt32), default=None, return_dtype=pl.UInt32
    )
    done = pl.Series(column.name, values, dtype=plain).gather(numbers)
    if isinstance(kind, pl.Datetime) and kind.time_zone:
        return done.dt.replace_time_zone("UTC").dt.convert_time_zone(kind.time_zone)
    return done


# -- Arrow ----------------------------------------------------------------------------------------


def arrow_frame(data: bytes) -> pl.DataFrame:
    """Return an Arrow file as a frame; categories become texts.

    Raises:
        ContentError: It is not readable.
    """
    read = pl.read_ipc if data.startswith(b"ARROW1") else pl.read_ipc_stream
    try:
        return without_categories(read(io.BytesIO(data)))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        lines = str(error).splitlines() or ["unreadable"]
        raise ContentError(f"it is no arrow file: {lines[0]}") from None


def without_categories(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a frame whose categories are texts."""
    texts = (pl.Categorical, pl.Enum)
    names = [name for name, dtype in frame.schema.items() if isinstance(dtype, texts)]
    return frame.with_columns(frame.get_column(name).cast(pl.String) for name in names)


# -- columns with types ---------------------------------------------------------------------------


def typed_columns(
    frame: pl.DataFrame, types: Types, texts: frozenset[str], where: str
) -> pl.DataFrame:
    """Return a frame with decided columns: others are left out, missing ones are null.

    Raises:
        SchemaChangedError: A value does not fit its type.
    """
    columns = []
    for name, kind in types.items():
        if name not in frame.columns:
            columns.append(pl.Series(name, [None] * frame.height, dtype=kind))
            continue
        column = frame.get_column(name)
        if column.dtype == pl.String and kind != pl.String() and name not in texts:
            columns.append(_typed(column, kind, where))
            continue
        try:
            columns.append(_cast(column, kind))
        except (pl.exceptions.PolarsError, TypeError, MisfitError) as error:
            lines = str(error).splitlines() or [str(column.dtype)]
            raise misfit(name, kind, where, lines[0]) from None
    return pl.DataFrame(columns, height=frame.height)


def _cast(column: pl.Series, kind: pl.DataType) -> pl.Series:
    """Cast a column, if no value changes.

    Raises:
        MisfitError: Some would.
        PolarsError: A value does not fit.
    """
    have = column.dtype
    if have in (kind, pl.Null()):
        return column.cast(kind, strict=True)
    if not _may_become(have, kind):
        raise MisfitError(f"values of type {have}")
    result = column.cast(kind, strict=True)
    if kind != pl.String():
        differs = result.cast(have, strict=False).ne_missing(column)
        if differs.any():
            raise MisfitError(f"{column.filter(differs)[0]!r} ({have}), which would change")
    return result


def _may_become(have: pl.DataType, kind: pl.DataType) -> bool:
    if isinstance(have, pl.Datetime) and isinstance(kind, pl.Datetime):
        return (have.time_zone is None) == (kind.time_zone is None)
    if have.is_temporal() or kind.is_temporal() or kind == pl.Boolean() or have == pl.Boolean():
        return kind == pl.String() or type(have) is type(kind)
    return True
