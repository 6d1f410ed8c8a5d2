"""The version is in one place, a release is checked, and files for GitHub fit their schemas."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from tests.contracts import release
from tests.contracts.source import ROOT, repository_files

GITHUB = ROOT / ".github"
SCHEMAS = {
    "vendor.github-workflows": sorted(GITHUB.glob("workflows/*.yml")),
    "vendor.github-issue-forms": sorted(
        path for path in GITHUB.glob("ISSUE_TEMPLATE/*.yml") if path.name != "config.yml"
    ),
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
}


def test_the_installed_version_is_that_of_pyproject() -> None:
    assert metadata.version("chunkmap") == release.version(), "run `make install`"


def test_no_other_file_has_the_version() -> None:
    """Locks have versions of others, the changelog those of the past, a record what it measured."""
    allowed = {
        "pyproject.toml",
        "CHANGELOG.md",
        "constraints.txt",
        "pip-constraints.txt",
        "benchmarks/baseline.json",
    }
    pattern = re.compile(rf"(?<![\d.]){re.escape(release.version())}(?![\d])")
    named = []
    for path in repository_files():
        name = path.relative_to(ROOT).as_posix()
        is_lock = "/locks/" in name or name == "docs/requirements.txt"
        if name in allowed or is_lock or path.suffix in (".gz", ".png"):
            continue
        if pattern.search(path.read_text("utf-8")):
            named.append(name)
    assert not named


def test_the_version_follows_the_newest_release() -> None:
    newest = Version(next(iter(release.releases())))
    assert Version(release.version()) >= newest


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that is ready to release 1.2.3."""
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## Unreleased\n\n## 1.2.3 (2026-02-01)\n\n- New.\n\n"
        "## 1.2.2 (2026-01-01)\n\n- Old.\n"
    )
    (tmp_path / "1.2.3.tar.gz").touch()
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr(release, "SAMPLES", tmp_path)
    return tmp_path


def test_a_prepared_release_passes(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main("check", "v1.2.3") == 0
    assert release.main("notes") == 0
    assert capsys.readouterr().out == "- New.\n"


@pytest.mark.parametrize(
    ("tag", "change", "says"),
    [
        ("v1.2.4", lambda folder: None, "the tag v1.2.4 is not v1.2.3"),
        ("1.2.3", lambda folder: None, "the tag 1.2.3 is not v1.2.3"),
        ("v1.2.3", lambda folder: (folder / "1.2.3.tar.gz").unlink(), "no 1.2.3.tar.gz"),
        (
            "v1.2.3",
            lambda folder: (folder / "CHANGELOG.md").write_text("## Unreleased\n\n- New.\n"),
            "give the section of 1.2.3 its number",
        ),
    ],
)
def test_an_unprepared_release_is_refused(
    prepared: Path, capsys: pytest.CaptureFixture[str], tag: str, change: Any, says: str
) -> None:
    change(prepared)
    assert release.main("check", tag) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_for_github_are_as_their_schema_says(schema: str) -> None:
    assert SCHEMAS[schema]
    subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema),
            *SCHEMAS[schema],
        ],
        check=True,
    )


@pytest.mark.parametrize("path", SCHEMAS["vendor.github-workflows"], ids=lambda path: path.name)
def test_workflows_have_few_rights(path: Path) -> None:
    """Actions are pinned by commit, tokens may read, and no step keeps them."""
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            used = step.get("uses", "")
            assert not used or re.search(r"@[0-9a-f]{40}$", used), used
            if used.startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            assert "${{" not in step.get("run", ""), "a value belongs in `env`"


def test_scripts_of_the_workflows_exist() -> None:
    for path in SCHEMAS["vendor.github-workflows"]:
        for script in re.findall(r"(?:^|\s)(\.ci/[a-z]+)", path.read_text("utf-8")):
            assert (ROOT / script).stat().st_mode & 0o100


def test_pre_commit_runs_what_make_lint_runs() -> None:
    """Its tools are those of .venv, so their versions are those of the lock."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    [local] = config["repos"]
    assert local["repo"] == "local"
    locked = (ROOT / "constraints.txt").read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for hook in local["hooks"]:
        program = hook["entry"].split()[0]
        assert hook["language"] == "system"
        assert program.startswith(".venv/bin/")
        assert (Path(sys.executable).parent / Path(program).name).exists()
    entries = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in local["hooks"]}
    linted = set(re.findall(r"\$\(BIN\)/(ruff|lint-imports|mypy)", makefile))
    assert linted <= entries
    assert {"ruff==", "mypy==", "import-linter=="} <= set(re.findall(r"^[\w-]+==", locked, re.M))
