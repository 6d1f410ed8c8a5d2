"""Check what workers have written to a ledger against the run's own plan.

A completion says which object publishing copies, and then deletes. So its rows are input that
nobody vouches for: a row counts only if this run could have written it, about a chunk of its plan.
Rows are checked once, a column at a time, when their segment is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import polars as pl

from partitioning import Plan
from pipeline.runs.ledger.keys import are_keys_of, folders_of, former_folders_of
from pipeline.runs.ledger.records import PARTIAL, REDUCE, Problems, Segment
from pipeline.storage.tokens import ATTEMPT_PATTERN, TokenRule

MOST_COUNT: Final = 1 << 44
"""Rows or bytes of one chunk. Larger than any object can be; sums of many stay far below 2^63."""
MOST_SECONDS: Final = 253_402_300_800.0
"""Unix seconds of the year 10,000: the latest time that can be shown."""
MOST_TEXT: Final = 64 << 10
"""Bytes of a message or a traceback."""
MOST_NAME: Final = 1024
"""Bytes of a name: of a batch, a worker, a fingerprint, an error's class."""
MOST_PARTS: Final = 10_000
"""Parts of an upload, as S3 allows."""
MOST_ETAG: Final = 256
"""Bytes of a part's ETag."""
MOST_REASON: Final = 8 << 10
"""Bytes of an object that was left out, with the reason."""

PARTIAL_NAME: Final = r"partials/[0-9A-Za-z][0-9A-Za-z._-]{0,254}\.arrow"
"""Name of a partial below its run's prefix."""
NODE_NAME: Final = r"reduced/[0-9a-f]{32}\.arrow"
"""Name of what one step of a reduce gives, below its run's prefix."""

_COUNTS: Final = ("rows_in", "rows_out", "bytes_in", "bytes_out")
_SECONDS: Final = ("seconds", "read_seconds", "compute_seconds", "stage_seconds", "started")
_NAMES: Final = ("batch", "worker", "code", "schema", "sha256")
_SHOWN: Final = 80
"""Characters of an example."""


def _text(column: str, most: int) -> pl.Expr:
    return pl.col(column).str.len_bytes() <= most


def _count(column: str) -> pl.Expr:
    return pl.col(column).is_between(0, MOST_COUNT)


def _seconds(column: str) -> pl.Expr:
    # Neither NaN nor an infinity is between two numbers.
    return pl.col(column).is_between(0.0, MOST_SECONDS)


@dataclass(frozen=True)
class EntryChecks:
    """What entries of one run's ledger may say."""

    plan: Plan
    run: str
    output: str
    """URI of the output prefix, with a slash at its end."""
    prefix: str
    """URI of the run's state, with a slash at its end."""
    tokens: TokenRule
    reduces: bool
    """The job combines its chunks' results instead of staging them."""

    def checked(self, segment: Segment) -> Segment:
        """Return what counts of some entries, and note what does not."""
        problems: Problems = dict(segment.problems)
        completions = self._completions(segment.completions, problems)
        failures = self._failures(segment.failures, problems)
        return Segment(completions, failures, segment.schemas, problems)

    @cached_property
    def _planned(self) -> pl.DataFrame:
        """The id and the folder of each chunk; where it differs, the one of earlier releases."""
        former = former_folders_of(self.plan)
        others = {} if former is None else {"former": former}
        return pl.DataFrame({"id": _ids(self.plan), "folder": folders_of(self.plan), **others})

    def _completions(self, rows: pl.DataFrame, problems: Problems) -> pl.DataFrame:
        if rows.is_empty():
            return rows
        common: dict[str, pl.Expr | pl.Series] = {
            "a number is negative, not finite or too large": pl.all_horizontal(
                *map(_count, _COUNTS), *map(_seconds, _SECONDS)
            ),
            "a text is too long": pl.all_horizontal(_text(name, MOST_NAME) for name in _NAMES),
            "the attempt is not one of ours": pl.col("attempt").str.contains(ATTEMPT_PATTERN),
            "its parts are not those of an upload": _are_short(rows["parts"], MOST_ETAG),
            "what it left out is no list of objects": _are_short(rows["left_out"], MOST_REASON),
            "what it filled is no list of columns": _are_short(rows["filled"], MOST_NAME),
        }
        rows = _kept(rows, common, problems)
        if not self.reduces:
            return self._staged(rows, problems)
        of_reduce = pl.col("batch") == REDUCE
        reduced = self._reduced(rows.filter(of_reduce), problems)
        return pl.concat([self._partials(rows.filter(~of_reduce), problems), reduced])

    def _staged(self, rows: pl.DataFrame, problems: Problems) -> pl.DataFrame:
        """Completions of chunks that were staged one by one."""
        rows, folders = self._of_plan(rows, problems)
        keys = (are_keys_of(self.output, self.run, column) for column in folders)
        return self._tokens(rows, pl.any_horizontal(keys), problems)

    def _reduced(self, rows: pl.DataFrame, problems: Problems) -> pl.DataFrame:
        """Completions of the whole reduce."""
        named = {
            "it names no step of the reduce": pl.col("chunk").str.contains(f"^{NODE_NAME}$")
            & (pl.col("index") == 0)
        }
        key = are_keys_of(self.output, self.run)
        return self._tokens(_kept(rows, named, problems), key, problems)

    def _partials(self, rows: pl.DataFrame, problems: Problems) -> pl.DataFrame:
        """Completions of chunks whose results were combined."""
        rows, _ = self._of_plan(rows, problems)
        rest = pl.col("uri").str.strip_prefix(self.prefix)
        sound = {
            "its result is no partial, and the job has a reduce": (pl.col("upload") == PARTIAL)
            & (pl.col("parts").list.len() == 0),
            "it names a partial outside of its run": pl.col("uri").str.starts_with(self.prefix)
            & rest.str.contains(f"^{PARTIAL_NAME}$"),
        }
        return _kept(rows, sound, problems)

    def _tokens(self, rows: pl.DataFrame, key: pl.Expr, problems: Problems) -> pl.DataFrame:
        rows = _kept(rows, {"its key is not that of its chunk in this run": key}, problems)
        allowed = _allowed(rows, self.tokens)
        return _kept(rows, {"staging could not have given its token": allowed}, problems)

    def _of_plan(self, rows: pl.DataFrame, problems: Problems) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows about chunks of the plan, and the folders that these may have."""
        inside = pl.col("index").is_between(0, len(self.plan) - 1)
        rows = _kept(rows, {"the plan has no such chunk": inside}, problems)
        ids = self._planned["id"].gather(rows["index"])
        rows = _kept(rows, {"the plan has no such chunk": pl.col("chunk") == ids}, problems)
        return rows, self._planned.drop("id")[rows["index"]]

    def _failures(self, rows: pl.DataFrame, problems: Problems) -> pl.DataFrame:
        if rows.is_empty():
            return rows
        sound = {
            "a number is negative, not finite or too large": _seconds("at"),
            "a text is too long": pl.all_horizontal(
                *(_text(name, MOST_NAME) for name in ("batch", "worker", "error")),
                *(_text(name, MOST_TEXT) for name in ("message", "trace")),
            ),
            "the attempt is not one of ours": pl.col("attempt").str.contains(ATTEMPT_PATTERN),
            "a value is missing": pl.col("transient").is_not_null(),
        }
        return self._of_plan(_kept(rows, sound, problems), problems)[0]


def _ids(plan: Plan) -> pl.Series:
    ids = pl.Series(pl.from_arrow(plan.chunk_table["id"]))
    return ids.cast(pl.Binary).bin.encode("hex")


def _are_short(lists: pl.Series, most: int) -> pl.Series:
    """Whether each row's texts are few enough, and each of them has at most so many bytes."""
    every = lists.explode(empty_as_null=False).str.len_bytes()
    short = lists.list.len() <= MOST_PARTS
    if every.null_count() or (every.max() or 0) > most:  # type: ignore[operator]
        sizes = lists.list.eval(pl.element().str.len_bytes().fill_null(most + 1))
        short &= sizes.list.max().fill_null(0) <= most
    return short


def _allowed(rows: pl.DataFrame, rule: TokenRule) -> pl.Series:
    """As `TokenRule.allows`, of whole columns."""
    upload = rows["upload"]
    allowed = pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True)
    if rule.staged is not None:
        rest = pl.col("uri").str.strip_prefix(rule.output)
        token = pl.concat_str(pl.lit(rule.staged), rest, pl.lit("."), pl.col("attempt"))
        allowed = rows.select(pl.col("upload") == token).to_series()
    if rule.ids is not None and not allowed.all():
        allowed |= upload.str.contains(rule.ids) & ~upload.is_in([".", ".."])
    return allowed


def _kept(
    rows: pl.DataFrame, checks: Mapping[str, pl.Expr | pl.Series], problems: Problems
) -> pl.DataFrame:
    """The rows that pass every check; the others are counted under the first that they fail."""
    if rows.is_empty():
        return rows
    passed = rows.select(
        (check if isinstance(check, pl.Expr) else pl.lit(check)).fill_null(False).alias(reason)
        for reason, check in checks.items()
    )
    if passed.height == rows.height and all(passed[reason].all() for reason in checks):
        return rows
    good = passed.select(pl.all_horizontal(pl.all())).to_series()
    left = ~good
    for reason in checks:
        failing = rows.filter(left & ~passed[reason])
        if failing.height:
            note(problems, reason, failing.height, _example(failing))
        left &= passed[reason]
    return rows.filter(good)


def note(problems: Problems, reason: str, count: int, example: str) -> None:
    """Count entries that are refused for one reason; the first example stays."""
    before, first = problems.get(reason, (0, example))
    problems[reason] = (before + count, first)


def _example(rows: pl.DataFrame) -> str:
    row = rows.row(0, named=True)
    where = row.get("uri") or row.get("message") or ""
    said = f"chunk {row['index']} of batch {row['batch']}, by worker {row['worker']}: {where}"
    said = " ".join(said.split())  # A line of its own would be somebody else's words.
    return said if len(said) <= 3 * _SHOWN else f"{said[: 3 * _SHOWN]} …"


def joined_problems(several: Sequence[Problems]) -> Problems:
    """Return the problems of several segments as one."""
    problems: Problems = {}
    for one in several:
        for reason, (count, example) in one.items():
            note(problems, reason, count, example)
    return problems


def sentences(problems: Problems) -> tuple[str, ...]:
    """Return a sentence for each kind of problem."""
    return tuple(
        f"{count:,} entries of the ledger are not counted ({reason}), such as {example}"
        for reason, (count, example) in problems.items()
    )
