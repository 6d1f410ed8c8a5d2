"""How far a run is, in a notebook: a widget where there are widgets, else HTML that changes."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from chunkmap import progress
from chunkmap.progress import Progress


class _Kernel:
    """A notebook's front end: what it was told to show, in order."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def display(self, value: Any, display_id: bool = False) -> Any:
        self.shown.append(value)
        return SimpleNamespace(update=self.shown.append)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> _Kernel:
    kernel = _Kernel()
    display = ModuleType("IPython.display")
    display.__dict__.update(display=kernel.display, HTML=str)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    return kernel


def _widgets(monkeypatch: pytest.MonkeyPatch, *, present: bool) -> None:
    def make(**values: Any) -> SimpleNamespace:
        return SimpleNamespace(**values)

    widgets = ModuleType("ipywidgets")
    widgets.__dict__.update(
        IntProgress=lambda **values: make(bar_style="", **values),
        Label=lambda text: make(value=text),
        HBox=lambda children: make(children=children, close=lambda: None),
    )
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    monkeypatch.setattr(progress, "find_spec", lambda name: widgets if present else None)


def test_html_changes_and_is_gone_at_the_end(
    kernel: _Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _widgets(monkeypatch, present=False)
    with Progress("orders<b>") as shown:
        shown.show("map", 3, 4)
    start, middle, end = kernel.shown
    assert "orders&lt;b&gt;" in start and "3 of 4 chunks" in middle and "width:75%" in middle
    assert end == ""


def test_a_widget_counts_and_says_when_the_run_has_failed(
    kernel: _Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _widgets(monkeypatch, present=True)
    with pytest.raises(ValueError, match="chunk"), Progress("orders") as shown:
        shown.show("map", 3, 4)
        raise ValueError("a chunk failed")
    [box] = kernel.shown
    bar, label = box.children
    assert (bar.value, bar.max, bar.bar_style) == (3, 4, "danger")
    assert label.value == "orders · map 3 of 4 chunks"


def test_nothing_is_shown_where_it_is_to_be_quiet(kernel: _Kernel) -> None:
    with Progress("orders", quiet=True) as shown:
        shown.show("map", 1, 2)
    assert kernel.shown == []
