"""Check the rows of a frame by a dataframely schema, and split those that fail from the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl

from pipeline.errors import CheckError
from pipeline.quality.results import MAX_EXAMPLES, example_of

RULES: Final = "chunkmap_rules"
"""Column of failing rows with the names of the rules that they break."""
_ROW: Final = "chunkmap_row"


@dataclass(frozen=True, slots=True)
class FailingRows:
    """The rows of a frame that break rules of a schema."""

    count: int = 0
    rules: Mapping[str, int] = field(default_factory=dict)
    """Number of rows by broken rule; a row may break several."""
    examples: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The rules with their numbers of rows, most first."""
        most = sorted(self.rules.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{name} {count:,}" for name, count in most)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON."""
        return {"count": self.count, "rules": dict(self.rules), "examples": list(self.examples)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FailingRows:
        """Read what `to_json` returned.

        Raises:
            ValueError, TypeError, AttributeError, KeyError: it is something else.
        """
        count, rules = value["count"], value["rules"]
        examples = value["examples"]
        numbers = [count, *rules.values()]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("a number of failing rows is none")
        if not all(isinstance(text, str) for text in (*rules, *examples)):
            raise ValueError("a rule or an example of failing rows is no text")
        return cls(count, dict(rules), tuple(examples))


@dataclass(frozen=True, slots=True)
class SplitRows:
    """A frame, split by a schema."""

    passing: pl.DataFrame
    failing: pl.DataFrame
    """Rows that break rules, with these rules in the column RULES."""
    found: FailingRows


class RowSchema:
    """A schema of dataframely, as rules for rows."""

    def __init__(self, name: str, schema: type[Any]) -> None:
        """Wrap a schema.

        Args:
            name: Name of the schema: `module:Class`.
            schema: The class, derived from `dataframely.Schema`.
        """
        import dataframely as dy

        self.name = name
        self._kinds: dict[str, pl.DataType] = {
            column: rule.dtype for column, rule in schema.columns().items()
        }
        # A number on each row, since dataframely returns only the columns of the schema.
        self._numbered: Any = type(
            schema.__name__, (schema,), {_ROW: dy.UInt32(nullable=True), "__module__": __name__}
        )

    def typed(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Give columns that are all null the type that the schema has for them."""
        wanted = {
            name: kind
            for name, kind in self._kinds.items()
            if frame.schema.get(name) == pl.Null and kind != pl.Null
        }
        if not wanted:
            return frame
        return pl.DataFrame(
            [c.cast(wanted[c.name]) if c.name in wanted else c for c in frame.get_columns()]
        )

    def split(self, frame: pl.DataFrame) -> SplitRows:
        """Split a frame into rows that keep all rules and rows that do not.

        Raises:
            CheckError: the frame lacks columns of the schema, or they are of other types.
        """
        from dataframely.exc import SchemaError

        present = [name for name in frame.columns if name in self._kinds]
        try:
            result = self._numbered.filter(frame[present].with_row_index(_ROW))
        except SchemaError as error:
            problem = str(error).partition("\n\n")[0].replace("\n", " ")
            raise CheckError(
                f"the result does not fit the schema {self.name} (checks.rows): {problem}",
                hint="fix the schema, or what the transform returns",
            ) from error
        if not len(result.failure):
            return SplitRows(frame, frame.clear(), FailingRows())
        return self._split(frame, result.failure.details().sort(_ROW))

    def _split(self, frame: pl.DataFrame, details: pl.DataFrame) -> SplitRows:
        names = [name for name in details.columns if name not in self._kinds and name != _ROW]
        broken = details.select(pl.nth(details.get_column_index(n)) == "invalid" for n in names)
        rows = details[_ROW].to_numpy()
        keeps = np.ones(frame.height, dtype=bool)
        keeps[rows] = False
        listed = broken.select(
            pl.concat_list(
                pl.when(pl.nth(at)).then(pl.lit(name)) for at, name in enumerate(names)
            ).list.drop_nulls()
        ).to_series()
        failing = frame[rows]
        rules = {name: int(broken[name].sum()) for name in names}
        found = FailingRows(
            count=len(rows),
            rules={name: count for name, count in rules.items() if count},
            examples=tuple(
                f"{example_of(row)} ({', '.join(broken_rules)})"
                for row, broken_rules in zip(
                    failing.head(MAX_EXAMPLES).to_dicts(), listed.head(MAX_EXAMPLES), strict=True
                )
            ),
        )
        column = listed.alias(free_name(RULES, frame))
        return SplitRows(frame.filter(pl.Series(keeps)), failing.with_columns(column), found)


def free_name(name: str, frame: pl.DataFrame) -> str:
    """Return a name for another column of a frame."""
    while name in frame.columns:
        name += "_"
    return name


def require_dataframely() -> Any:
    """Import dataframely. Raises CheckError if it is not installed."""
    try:
        import dataframely
    except ImportError as error:
        raise CheckError(
            "checks of rows need the package dataframely, which is not installed",
            hint="pip install 'chunkmap[checks]', where the driver and where the workers run",
        ) from error
    return dataframely
