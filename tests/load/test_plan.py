"""Which commits are pending, for each mode and each history of an output."""

from __future__ import annotations

import pytest

from pipeline.load.errors import ReplacedCommitsError
from pipeline.load.plan import CommitFiles, LoadedCommit, Mode, Version, digest_of_keys, pending


def commit(name: str, *keys: str, rows: int = 10) -> CommitFiles:
    files = keys or (f"{name}.parquet",)
    return CommitFiles(name, rows, files, digest_of_keys(files))


def version(*commits: CommitFiles, manifest: int = 5, more: tuple[str, ...] = ()) -> Version:
    names = frozenset({one.name for one in commits} | set(more))
    return Version("s3://b/out/", manifest, commits, names)


def held(one: CommitFiles, manifest: int = 4) -> LoadedCommit:
    return LoadedCommit(one.name, manifest, one.rows, one.digest, "load")


A, B, C = commit("a", "a1", "a2"), commit("b"), commit("c")


@pytest.mark.parametrize("mode", ["append", "merge"])
def test_new_commits_are_pending_in_the_order_of_the_manifest(mode: Mode) -> None:
    assert pending(version(A, B, C), [], mode, "t") == (A, B, C)
    assert pending(version(A, B, C), [held(B)], mode, "t") == (A, C)
    assert pending(version(A, B), [held(B), held(A)], mode, "t") == ()


def test_replace_takes_all_unless_the_table_has_exactly_that_version() -> None:
    assert pending(version(A, B), [held(A)], "replace", "t") == (A, B)
    assert pending(version(A, B), [held(A), held(C)], "replace", "t") == (A, B)
    assert pending(version(A, B), [held(B), held(A)], "replace", "t") == ()
    assert pending(version(commit("a", "a1"), B), [held(B), held(A)], "replace", "t") != ()


@pytest.mark.parametrize("rest", [(commit("a", "a1"), B), (B,)])
def test_replaced_files_cannot_be_appended_but_merged(rest: tuple[CommitFiles, ...]) -> None:
    now = version(*rest, more=("a",))
    with pytest.raises(ReplacedCommitsError) as caught:
        pending(now, [held(A)], "append", "finance.t")
    assert "10 rows of commit a" in caught.value.message
    assert "finance.t" in caught.value.message and "manifest 5" in caught.value.message
    assert "--mode replace" in (caught.value.hint or "")
    assert "--mode merge" in (caught.value.hint or "")
    assert caught.value.exit_code == 3
    assert pending(now, [held(A)], "merge", "t") == (B,)


@pytest.mark.parametrize("mode", ["append", "merge"])
def test_what_was_rolled_back_needs_a_replace(mode: Mode) -> None:
    with pytest.raises(ReplacedCommitsError, match="rolled back") as caught:
        pending(version(A), [held(A), held(B)], mode, "t")
    assert "merge" not in (caught.value.hint or "")
    with pytest.raises(ReplacedCommitsError, match="manifest 9, which is newer"):
        pending(version(A), [held(A), held(B, manifest=9)], mode, "t")


def test_the_digest_does_not_depend_on_the_order_of_files() -> None:
    assert digest_of_keys(["x", "y"]) == digest_of_keys(["y", "x"]) != digest_of_keys(["x"])
