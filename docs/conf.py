"""The documentation site: `make docs` builds it with Sphinx and MyST, and fails on any warning.

The pages are plain Markdown that a code host shows as well, and tests execute their blocks. What
only such hosts understand is translated here, as Sphinx reads a page.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

project = "chunkmap"
author = "The chunkmap authors"
project_copyright = author
release = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]

extensions = ["myst_parser", "sphinx_copybutton", "sphinxcontrib.mermaid"]
exclude_patterns = ["requirements.txt"]
nitpicky = True

myst_enable_extensions = ["colon_fence"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"chunkmap {release}"
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
copybutton_prompt_text = "$ "
copybutton_here_doc_delimiter = "EOF"
mermaid_version = "11.12.1"
mermaid_fullscreen = False

REPOSITORY = os.environ.get("DOCS_REPOSITORY", "")
"""Address of the source tree, such as https://github.com/OWNER/NAME/blob/v1.0.0. Links to files
outside docs/ lead there; without it they download the file."""
SHOWN = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md", "security": "SECURITY.md"}
"""Documents of the root by the page of docs/project/ that shows them."""

_TITLED = re.compile(r'^```(?P<language>\w+) title="(?P<title>[^"]+)"$', re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?P<path>(?!\w+:)[^)#\s]+)")


def translate(text: str, origin: Path, page: Path) -> str:
    """Translate a text for Sphinx: titles of blocks become captions, links lead where they should.

    Args:
        text: Markdown.
        origin: Folder that its relative links start from.
        page: Folder of the page that shows it.
    """
    pages = {ROOT / name: DOCS / f"project/{page}.md" for page, name in SHOWN.items()}
    pages[ROOT / "README.md"] = DOCS / "index.md"

    def link(found: re.Match[str]) -> str:
        path = (origin / found["path"]).resolve()
        path = pages.get(path, path)
        if REPOSITORY and not path.is_relative_to(DOCS):
            return f"{REPOSITORY}/{path.relative_to(ROOT).as_posix()}"
        return os.path.relpath(path, page)

    text = _TITLED.sub(r"```{code-block} \g<language>\n:caption: \g<title>\n", text)
    return _LINK.sub(link, text)


def _translate_source(app: Sphinx, docname: str, source: list[str]) -> None:
    page = Path(app.srcdir, docname)
    if page.parent.name == "project":
        source[0] = translate((ROOT / SHOWN[page.name]).read_text("utf-8"), ROOT, page.parent)
    else:
        source[0] = translate(source[0], page.parent, page.parent)


def setup(app: Sphinx) -> dict[str, bool]:
    """Translate each page that is read."""
    app.connect("source-read", _translate_source)
    return {"parallel_read_safe": True}
