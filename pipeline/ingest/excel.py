"""Read a sheet of an Excel workbook, by calamine through fastexcel (the extra `excel`)."""

from __future__ import annotations

import io
import logging
import re
import zipfile
import zlib
from functools import reduce
from importlib import import_module
from typing import Any, Final

import polars as pl

from pipeline.errors import UsageError
from pipeline.ingest.contents import ContentError, limit_error, read_entry

_CELL_BYTES: Final = 24
"""Bytes of a cell in memory, also of an empty one between others."""
_USUAL_CELL: Final = re.compile(rb'<(?:[\w.-]+:)?c\s+r="([A-Za-z]+)(\d+)"')
_CELL: Final = re.compile(rb"<(?:[\w.-]+:)?c(?=[\s/>])")
_PLACE: Final = re.compile(
    rb"<(?:[\w.-]+:)?(row|c)(?=[\s/>])"
    rb"""|(?<![\w:.-])r\s*=\s*["']([A-Za-z]*)(\d+)["']"""
)
"""A row or a cell of a sheet, and the place of one: `A1`, or the number of a row."""

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
        most: Maximum bytes of the workbook, decompressed, and of a sheet's cells in memory.

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
    data = _checked(data, most)
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


def _checked(data: bytes, most: int) -> bytes:
    """Return a workbook with the same cells that fits in memory.

    It has the XML parts as they were decompressed here, whatever sizes the archive declares.
    """
    sink, left = io.BytesIO(), most
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(sink, "w") as checked:
            for name, entry in {entry.filename: entry for entry in archive.infolist()}.items():
                if not _is_read(name):
                    continue
                part = read_entry(archive, entry, left + 1)
                left -= len(part)
                if left < 0 or _cells(part) * _CELL_BYTES > most:
                    raise limit_error(most)
                checked.writestr(name, part)
    except ContentError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise _no_workbook(error) from None
    return sink.getvalue()


def _is_read(name: str) -> bool:
    """Whether a part may have cells; `content.xml` is that of an OpenDocument sheet."""
    name = name.lower()
    return name.endswith((".xml", ".rels")) and name != "content.xml"


def _cells(part: bytes) -> int:
    """Return the number of cells between the first and the last of a sheet: all are in memory."""
    if b"sheetData" not in part:
        return 0
    rows, columns = _usual_places(part) or _places(part)
    return _span(rows) * _span(columns)


def _span(numbers: set[int]) -> int:
    return max(numbers) - min(numbers) + 1 if numbers else 0


def _usual_places(part: bytes) -> tuple[set[int], set[int]] | None:
    """Return the rows and columns of cells, quickly; None if a cell is not written as usual."""
    columns, rows, count = set(), set(), 0
    for found in _USUAL_CELL.finditer(part):
        columns.add(found[1])
        rows.add(found[2])
        count += 1
    if count != sum(1 for _ in _CELL.finditer(part)):
        return None
    return set(map(int, rows)), set(map(_column, columns))


def _places(part: bytes) -> tuple[set[int], set[int]]:
    """Return the rows and columns of cells; one without a place follows the one before."""
    rows, columns = set(), set()
    row = column = 0
    for found in _PLACE.finditer(part):
        tag, letters, digits = found.groups()
        if tag == b"row":
            row, column = row + 1, 0
        elif tag:
            column += 1
        else:
            row, column = int(digits), _column(letters) or column
        if column:
            rows.add(row)
            columns.add(column)
    return rows, columns


def _column(letters: bytes) -> int:
    """Return the number of a column; of one that is none, a larger number."""
    return reduce(lambda number, letter: number * 26 + letter - 64, letters[:8].upper(), 0)


def _has_booleans(texts: pl.Series) -> bool:
    return bool(texts.is_in(["true", "false"]).any())


def _no_workbook(error: Exception) -> ContentError:
    lines = str(error).splitlines() or ["unreadable"]
    return ContentError(f"it is no Excel workbook: {lines[0]}")
