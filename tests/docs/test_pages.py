"""The pages' links lead somewhere, and their snippets are what they say they are."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from pipeline.config.job import load_job
from pipeline.config.load_file import parse_load_file
from tests.contracts.source import ROOT, repository_files
from tests.docs.pages import LANGUAGES, Block, Command, blocks, commands, links, missing, read

PAGES = [path for path in repository_files() if path.suffix == ".md"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    dead = [target for target in links(read(page)) if not (page.parent / target).exists()]
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_of_a_kind_that_is_tested(page: Path, tmp_path: Path) -> None:
    for block in blocks(read(page)):
        assert block.language in LANGUAGES, f"{name(page)}:{block.line}"
        if block.language == "console":
            assert commands(block), f"{name(page)}:{block.line}: no command"
        elif block.language == "python":
            ast.parse(block.text)
        elif block.language == "yaml" and re.search(r"^transform:", block.text, re.MULTILINE):
            job = tmp_path / "job.yaml"
            job.write_text(block.text, "utf-8")
            load_job(job)
        elif block.language == "yaml" and re.match(r"name:.*^into:", block.text, re.M | re.S):
            parse_load_file(block.text)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_make_targets_exist(page: Path) -> None:
    """`make -n` says what a target would do, or fails when there is none."""
    named = re.findall(r"(?:^\$ |`)make ([a-z][a-z-]*)", read(page), re.MULTILINE)
    for target in sorted(set(named)):
        subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=True)


def test_a_page_is_read_as_documented() -> None:
    page = 'Text\n\n```yaml title="a.yaml"\nname: a\n```\n\n```console\n$ one\nshown\n$ two\n```\n'
    assert blocks(page) == [
        Block("yaml", "a.yaml", "name: a\n", 3),
        Block("console", None, "$ one\nshown\n$ two\n", 7),
    ]
    assert commands(blocks(page)[1]) == [Command("one", ("shown",)), Command("two", ())]
    with pytest.raises(ValueError, match=r"line 1: a console block begins"):
        commands(Block("console", None, "shown first\n", 1))


@pytest.mark.parametrize(
    ("shows", "lacks"),
    [
        (("a…c", "d"), None),
        (("abc", "d"), None),
        (("d", "abc"), "abc"),
        (("ab",), "ab"),
        (("a.c",), "a.c"),
    ],
)
def test_shown_lines_are_looked_for_in_order(shows: tuple[str, ...], lacks: str | None) -> None:
    assert missing(shows, "abc\nbetween\nd\n") == lacks
