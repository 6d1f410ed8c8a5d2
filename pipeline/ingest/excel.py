"""Read a sheet of an Excel workbook, by calamine through fastexcel (the extra `excel`)."""

from __future__ import annotations

import io
import logging
import zipfile
from importlib import import_module
from typing import Any

import polars as pl

from pipeline.errors import UsageError
from pipeline.ingest.contents import ContentError, limit_error

# It warns of columns without values, which the drift of an ingest reports.
logging.getLogger("fastexcel").setLevel(logging.ERROR)


def excel_frame(data: bytes, sheet: str | None, most: int) -> pl.DataFrame:
    """Return the rows of a sheet; its first row has the names of columns.

    All rows decide a column's type: numbers that are whole, others, booleans, dates, times of a
    day, or else text. Cells with errors, such as `#N/A`, are null; rows without values are left
    out.

    Args:
        data: The workbook.
        sheet: Name of the sheet; None for the only one.
        most: Maximum bytes of the workbook, decompressed.

    Raises:
        ContentError: It is no workbook, has no such sheet, or a column has numbers and booleans.
        UsageError: fastexcel is not installed.
    """
    try:
        fastexcel = import_module("fastexcel")
    except ImportError:
        raise UsageError(
            "reading Excel files needs the package fastexcel",
            hint="pip install 'chunkmap[excel]'",
        ) from None
    _refuse_large(data, most)
    name = _sheet(fastexcel, data, sheet)
    frame, texts = _read(data, name), _read(data, name, "string")
    for column in frame.get_columns():
        if column.dtype.is_numeric() and _has_booleans(texts.get_column(column.name)):
            raise ContentError(f"column {column.name!r} of sheet {name!r} has numbers and booleans")
    empty = [column.name for column in frame.get_columns() if column.null_count() == len(column)]
    return frame.with_columns(pl.lit(None, pl.Null).alias(column) for column in empty)


def _read(data: bytes, sheet: str, kind: str | None = None) -> pl.DataFrame:
    try:
        return pl.read_excel(
            io.BytesIO(data),
            sheet_name=sheet,
            engine="calamine",
            infer_schema_length=None,
            raise_if_empty=False,
            read_options={} if kind is None else {"dtypes": kind},
        )
    except Exception as error:  # Of calamine, and of Polars.
        raise _no_workbook(error) from None


def _sheet(fastexcel: Any, data: bytes, sheet: str | None) -> str:
    try:
        names = fastexcel.read_excel(data).sheet_names
    except Exception as error:
        raise _no_workbook(error) from None
    if sheet is None and len(names) == 1:
        return str(names[0])
    listed = ", ".join(repr(name) for name in names[:20])
    if sheet is None:
        raise ContentError(f"it has the sheets {listed}: name one (files.sheet)")
    if sheet not in names:
        raise ContentError(f"it has no sheet {sheet!r} (files.sheet), but {listed}")
    return sheet


def _refuse_large(data: bytes, most: int) -> None:
    """Refuse a workbook that would not fit in memory."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _no_workbook(error) from None
    if size > most:
        raise limit_error(most)


def _has_booleans(texts: pl.Series) -> bool:
    return bool(texts.is_in(["true", "false"]).any())


def _no_workbook(error: Exception) -> ContentError:
    lines = str(error).splitlines() or ["unreadable"]
    return ContentError(f"it is no Excel workbook: {lines[0]}")
