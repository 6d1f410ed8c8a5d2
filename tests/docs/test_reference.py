"""The reference pages say what the code says."""

import pytest

from pipeline.cli.reference import PAGES, pages
from tests.contracts.source import ROOT


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_says(name: str) -> None:
    stored = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert stored == pages()[name], "run `make reference`"
