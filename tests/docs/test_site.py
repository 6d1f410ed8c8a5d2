"""The site shows every page, and translates what only code hosts understand."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.contracts.source import ROOT, repository_files
from tests.docs.pages import blocks, read

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def conf() -> ModuleType:
    """Sphinx's settings, as a module of its own."""
    spec = importlib.util.spec_from_file_location("docs_conf", DOCS / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_contents() -> None:
    listed = [
        line
        for block in blocks(read(DOCS / "index.md"))
        if block.language == "{toctree}"
        for line in block.text.splitlines()
        if line and not line.startswith(":")
    ]
    pages = {
        path.relative_to(DOCS).with_suffix("").as_posix()
        for path in repository_files()
        if path.suffix == ".md" and path.is_relative_to(DOCS)
    }
    assert sorted(listed) == sorted(pages - {"index"})


def test_the_index_links_every_page() -> None:
    text = read(DOCS / "index.md")
    linked = set(re.findall(r"\]\(([^)#]+)\.md\)", text))
    named = {line for b in blocks(text) for line in b.text.splitlines() if re.match(r"[a-z]", line)}
    assert named <= linked


def test_titles_become_captions(conf: ModuleType) -> None:
    text = '```python title="examples/a.py"\nimport a\n```\n'
    assert conf.translate(text, DOCS, DOCS) == (
        "```{code-block} python\n:caption: examples/a.py\n\nimport a\n```\n"
    )


@pytest.mark.parametrize(
    ("link", "elsewhere", "target"),
    [
        ("docs/guides/runs.md", "", "../guides/runs.md"),
        ("docs/guides/runs.md#versions", "", "../guides/runs.md#versions"),
        ("CHANGELOG.md", "", "changelog.md"),
        ("README.md", "", "../index.md"),
        ("conf/base.yaml", "", "../../conf/base.yaml"),
        (
            "conf/base.yaml",
            "https://host.invalid/blob/v1",
            "https://host.invalid/blob/v1/conf/base.yaml",
        ),
        ("CHANGELOG.md", "https://host.invalid/blob/v1", "changelog.md"),
        ("https://pola.rs", "", "https://pola.rs"),
        ("#below", "", "#below"),
    ],
)
def test_links_of_a_shown_document_lead_on(
    conf: ModuleType, monkeypatch: pytest.MonkeyPatch, link: str, elsewhere: str, target: str
) -> None:
    monkeypatch.setattr(conf, "REPOSITORY", elsewhere)
    assert conf.translate(f"[a]({link})", ROOT, DOCS / "project") == f"[a]({target})"


def test_shown_documents_exist(conf: ModuleType) -> None:
    for page, name in conf.SHOWN.items():
        assert (ROOT / name).is_file()
        assert f"](../../{name})" in read(Path(DOCS, "project", f"{page}.md"))
