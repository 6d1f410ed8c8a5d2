"""Make Excel workbooks, without a library for it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from xml.sax.saxutils import escape

_HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
_OPEN = "http://schemas.openxmlformats.org"
_MAIN = f'xmlns="{_OPEN}/spreadsheetml/2006/main"'
_KIND = f"{_OPEN}/officeDocument/2006/relationships"
_LINKS = f'<Relationships xmlns="{_OPEN}/package/2006/relationships">'

Cell = None | str | bool | int | float | date | datetime


def workbook(sheets: Mapping[str, Sequence[Sequence[Cell]]]) -> bytes:
    """Return a workbook with these cells; texts such as `#N/A` are errors."""
    names = list(enumerate(sheets, 1))
    listed = "".join(f'<sheet name="{name}" sheetId="{i}" r:id="s{i}"/>' for i, name in names)
    links = "".join(
        f'<Relationship Id="s{i}" Type="{_KIND}/worksheet" Target="worksheets/sheet{i}.xml"/>'
        for i, _ in names
    )
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{_OPEN}/package/2006/content-types">'
        '<Default Extension="xml" ContentType="application/xml"/></Types>',
        "_rels/.rels": f'{_LINKS}<Relationship Id="r" Type="{_KIND}/officeDocument" '
        'Target="xl/workbook.xml"/></Relationships>',
        "xl/styles.xml": f'<styleSheet {_MAIN}><cellXfs count="3"><xf numFmtId="0"/>'
        '<xf numFmtId="14"/><xf numFmtId="22"/></cellXfs></styleSheet>',
        "xl/workbook.xml": f'<workbook {_MAIN} xmlns:r="{_KIND}"><sheets>{listed}</sheets>'
        "</workbook>",
        "xl/_rels/workbook.xml.rels": f'{_LINKS}<Relationship Id="st" Type="{_KIND}/styles" '
        f'Target="styles.xml"/>{links}</Relationships>',
    }
    for i, rows in enumerate(sheets.values(), 1):
        body = "".join(_row(number, row) for number, row in enumerate(rows, 1))
        parts[f"xl/worksheets/sheet{i}.xml"] = (
            f"<worksheet {_MAIN}><sheetData>{body}</sheetData></worksheet>"
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, _HEAD + text)
    return buffer.getvalue()


def _row(number: int, cells: Sequence[Cell]) -> str:
    return f'<row r="{number}">{"".join(_cell(number, *pair) for pair in enumerate(cells))}</row>'


def _cell(row: int, column: int, value: Cell) -> str:
    place = f'<c r="{chr(65 + column)}{row}"'
    match value:
        case None:
            return ""
        case bool():
            return f'{place} t="b"><v>{int(value)}</v></c>'
        case str() if value.startswith("#"):
            return f'{place} t="e"><v>{value}</v></c>'
        case str():
            return f'{place} t="inlineStr"><is><t>{escape(value)}</t></is></c>'
        case datetime():
            return (
                f'{place} s="2"><v>{(value - datetime(1899, 12, 30)) / timedelta(days=1)}</v></c>'
            )
        case date():
            return f'{place} s="1"><v>{(value - date(1899, 12, 30)).days}</v></c>'
    return f"{place}><v>{value}</v></c>"
