"""The Dockerfile and what goes into the image, without an engine."""

import re
import shutil
import subprocess
import sysconfig
import tomllib
from itertools import pairwise

import pytest
from packaging.utils import canonicalize_name

from pipeline.config.settings import load_settings
from tests.contracts.source import ROOT
from tests.contracts.test_lock import ENTRY, pins

LINES = (ROOT / "Dockerfile").read_text("utf-8")
JOINED = re.sub(r"\\\n\s*", "", LINES)
LOCKS = ("image", "build", "s3")
BUILD_TOOLS = {"pip", "setuptools", "wheel", "hatchling", "uv", "build", "cython"}
TEST_TOOLS = {"pytest", "moto", "mypy", "ruff", "hypothesis", "ministack", "boto3"}


def _locked(name: str) -> dict[str, set[str]]:
    text = (ROOT / "deploy" / "locks" / f"{name}.txt").read_text("utf-8")
    rest = [line for line in ENTRY.sub("", text).splitlines() if not line.startswith("#")]
    assert rest == [], "not a pin with sha256 hashes"
    found: dict[str, set[str]] = {}
    for entry in ENTRY.finditer(text):
        found.setdefault(canonicalize_name(entry["name"]), set()).add(entry["version"])
    return found


def _stages() -> dict[str, str]:
    parts = re.split(r"^FROM (\S+) AS (\w+)$", JOINED, flags=re.MULTILINE)[1:]
    return {name: body for (name, body) in zip(parts[1::3], parts[2::3], strict=True)}


@pytest.mark.parametrize("name", LOCKS)
def test_the_image_has_the_versions_that_are_tested(name: str) -> None:
    for package, versions in _locked(name).items():
        assert versions <= {str(pin.version) for pin in pins()[package]}, package


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if hadolint is None:
        pytest.skip("hadolint is not published for this platform")
    said = subprocess.run(
        [hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stdout


def test_no_tool_gets_into_the_image() -> None:
    assert not _locked("image").keys() & (BUILD_TOOLS | TEST_TOOLS)


def test_everything_is_installed_by_hash() -> None:
    installs = re.findall(r"\S*/pip [^&]*install[^&]*", JOINED)
    assert len(installs) == 4
    for command in installs:
        by_hash = "--require-hashes" in command and "--only-binary :all:" in command
        assert "--no-deps" in command
        assert by_hash or "--no-index" in command, command


def test_images_run_as_a_user_of_their_own() -> None:
    stages = _stages()
    for name in ("s3", "chunkmap"):
        instructions = re.findall(r"^(\w+)", stages[name], re.MULTILINE)
        users = re.findall(r"^USER (\S+)$", stages[name], re.MULTILINE)
        assert users == ["10001:10001"]
        assert instructions.index("USER") > max(
            place for place, word in enumerate(instructions) if word in ("RUN", "COPY")
        )


def test_stages_take_only_finished_environments_from_others() -> None:
    copied = re.findall(r"COPY --from=(\w+) (\S+)", LINES)
    assert copied == [("weed", "/opt/weed/bin/weed"), ("environment", "/opt/chunkmap")]


def test_what_changes_often_comes_last() -> None:
    """Else each change of the code would install every dependency anew."""
    body = _stages()["environment"]
    places = [body.index(part) for part in ("deploy/locks/image.txt", "COPY pipeline", "wheel")]
    assert all(one < other for one, other in pairwise(places))


def test_the_base_image_has_a_version() -> None:
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.\d+\.\d+-slim-\w+$", LINES, re.MULTILINE)
    froms = re.findall(r"^FROM (\S+)", LINES, re.MULTILINE)
    assert set(froms) == {"${PYTHON_IMAGE}", "build", "base"}


@pytest.mark.parametrize("instruction", ["ADD", "MAINTAINER", "ONBUILD", "SHELL", "VOLUME"])
def test_it_does_without(instruction: str) -> None:
    assert not re.search(rf"^{instruction}\b", LINES, re.MULTILINE)


def test_no_secret_is_an_argument() -> None:
    given = re.findall(r"^(?:ARG|ENV) (.*)$", JOINED, re.MULTILINE)
    assert not [line for line in given if re.search("password|token|secret_|key", line, re.I)]


def test_the_context_is_named_piece_by_piece() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "everything is left out but what is named"
    assert {"deploy/secrets", "**/.env*"} <= set(rules)
    assert "!tests" not in rules


def _copied(body: str) -> set[str]:
    """What instructions take from the context, by its first folder or file."""
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", body, re.MULTILINE)
    return {source.partition("/")[0] for copy in copies for source in copy.split()}


def test_the_context_has_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == _copied(JOINED)


def test_every_packaged_module_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packaged = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert set(packaged) <= _copied(_stages()["environment"])


def test_packages_that_transforms_may_come_from_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    allowed = load_settings("compose").transforms.allow
    assert {name.partition(".")[0] for name in allowed} <= _copied(_stages()["chunkmap"])
