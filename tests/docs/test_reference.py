"""The reference pages say what the code says."""

from functools import cache

import pytest

from docs import api_reference
from pipeline.cli.reference import PAGES, pages
from tests.contracts.source import ROOT

rendered = cache(pages)
"""All pages, rendered once."""


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_says(name: str) -> None:
    stored = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert stored == rendered()[name], "run `make reference`"


def test_the_python_api_is_what_the_docstrings_say() -> None:
    assert api_reference.PAGE.read_text("utf-8") == api_reference.page(), "run `make reference`"
