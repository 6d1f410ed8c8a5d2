"""Load YAML with limits on aliases and nesting, which make a small file costly."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

MAX_BYTES = 1 << 20
"""Maximum size of a file in bytes."""
MAX_DEPTH = 100
"""Maximum depth of nested lists and mappings, also through aliases."""
MAX_ALIASED_NODES = 100_000
"""Maximum number of values that aliases repeat."""


class Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's plain words, and limits that are checked while composing."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._deepest = self._nodes = self._aliased = 0
        self._anchored: dict[int, tuple[int, int]] = {}
        """Nodes and levels below each complete anchored node, by the node's identity."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, or resolve an alias."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, parent, index)
        before, deepest = self._nodes, self._deepest
        self._nodes += 1
        self._depth += 1
        self._deepest = self._depth
        self._check_depth(self._depth, event)
        node = super().compose_node(parent, index)
        if getattr(event, "anchor", None) is not None:
            self._anchored[id(node)] = self._nodes - before, self._deepest - self._depth + 1
        self._depth -= 1
        self._deepest = max(deepest, self._deepest)
        return node

    def _alias(
        self, event: yaml.AliasEvent, parent: yaml.Node | None, index: Any
    ) -> yaml.Node | None:
        if event.anchor not in self.anchors:
            # The message leaves out its name, which may be the beginning of a password.
            raise _error("no such anchor; quote text that begins with `*`", event)
        node = super().compose_node(parent, index)
        if id(node) not in self._anchored:
            raise _error("an alias inside the value that it names", event)
        nodes, levels = self._anchored[id(node)]
        self._nodes += nodes
        self._aliased += nodes
        if self._aliased > MAX_ALIASED_NODES:
            raise _error(f"aliases repeat more than {MAX_ALIASED_NODES:,} values", event)
        self._check_depth(self._depth + levels, event)
        self._deepest = max(self._deepest, self._depth + levels)
        return node

    @staticmethod
    def _check_depth(depth: int, event: yaml.Event) -> None:
        if depth > MAX_DEPTH:
            raise _error(f"nested deeper than {MAX_DEPTH} levels", event)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; an impossible value (month 13) is an error with its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise ConstructorError(None, None, str(error), node.start_mark) from error


def _unknown_tag(loader: Loader, node: yaml.Node) -> None:
    raise ConstructorError(
        None, None, "no such tag; quote text that begins with `!`", node.start_mark
    )


def _error(problem: str, event: yaml.Event) -> ComposerError:
    return ComposerError(None, None, problem, event.start_mark)  # type: ignore[arg-type]


Loader.add_constructor(None, _unknown_tag)
Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if not tag.endswith((":bool", ":int", ":float"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _rule, _first in (
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    # Text with a leading zero is an identifier such as 007, not a number.
    ("int", r"[-+]?(0|[1-9][0-9_]*)$", "-+0123456789"),
    ("float", r"[-+]?(0|[1-9][0-9_]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?$", "-+0123456789"),
    ("float", r"[-+]?\.([0-9]+([eE][-+]?[0-9]+)?|inf|Inf|INF)$", "-+."),
    ("float", r"\.(nan|NaN|NAN)$", "."),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_rule), list(_first))


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which `Loader` would read as another type."""


Dumper.yaml_implicit_resolvers = {
    first: [*Loader.yaml_implicit_resolvers.get(first, []), *rules]
    for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
