"""Checks cost little. pytest benchmarks/micro/test_checks.py --benchmark-enable -s"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.micro.check_costs import MODULE, MOST, measure, table


def test_checks_cost_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dataframely", reason="the extra `checks` is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CHUNKMAP_TRANSFORMS__ALLOW", MODULE)
    seconds = measure(tmp_path)
    print("\n" + table(seconds))
    assert max(seconds.values()) <= MOST * seconds["none"]
