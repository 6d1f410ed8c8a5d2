"""Check the entries that workers have written to a ledger against the run's plan.

A completion names the staged object that publishing copies and then deletes, so entries are
untrusted: one counts only if this run could have written it, for a chunk of its plan. Entries are
checked once, a column at a time, when their segment is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import polars as pl

from partitioning import Plan
from pipeline.quality.figures import Wanted
from pipeline.runs.ledger.check_files import is_checked
from pipeline.runs.ledger.keys import are_keys_of, folders_of, former_folders_of
from pipeline.runs.ledger.records import MERGE, PARTIAL, REDUCE, Problems, Segment
from pipeline.storage.tokens import ATTEMPT_PATTERN, TokenRule

MAX_COUNT: Final = 1 << 44
"""Maximum rows or bytes of one chunk: more than any object has; sums stay far below 2^63."""
MAX_SECONDS: Final = 253_402_300_800.0
"""Latest time: Unix seconds of the year 10,000, the latest that can be shown."""
MAX_TEXT: Final = 64 << 10
"""Maximum bytes of a message or a traceback."""
MAX_NAME: Final = 1024
"""Maximum bytes of a name: of a batch, a worker, a fingerprint, an error's class."""
MAX_PARTS: Final = 10_000
"""Maximum number of parts of an upload, as S3 allows."""
MAX_ETAG: Final = 256
"""Maximum bytes of a part's ETag."""
MAX_REASON: Final = 8 << 10
"""Maximum bytes of a left-out object's URI and reason."""

PARTIAL_NAME: Final = r"partials/[0-9A-Za-z][0-9A-Za-z._-]{0,254}\.arrow"
"""Pattern of the name of a partial below its run's prefix."""
NODE_NAME: Final = r"reduced/[0-9a-f]{32}\.arrow"
"""Pattern of the name of a reduce step's result below its run's prefix."""

_COUNTS: Final = (
    *("rows_in", "rows_out", "bytes_in", "bytes_out"),
    *("reads", "writes", "retries", "throttled", "request_limit", "memory"),
    "copied",
)
_SECONDS: Final = (
    *("seconds", "read_seconds", "compute_seconds", "stage_seconds", "started"),
    "encode_seconds",
)
_NAMES: Final = ("batch", "worker", "code", "schema", "sha256")
_SHOWN: Final = 80
"""A third of the maximum number of characters of an example."""


def _text(column: str, most: int) -> pl.Expr:
    return pl.col(column).str.len_bytes() <= most


def _count(column: str) -> pl.Expr:
    return pl.col(column).is_between(0, MAX_COUNT)


def _seconds(column: str) -> pl.Expr:
    # NaN and infinities fail this check too.
    return pl.col(column).is_between(0.0, MAX_SECONDS)


@dataclass(frozen=True)
class EntryChecks:
    """Checks the entries of one run's ledger."""

    plan: Plan
    run: str
    output: str
    """URI of the output prefix, with a slash at its end."""
    prefix: str
    """URI of the run's state, with a slash at its end."""
    tokens: TokenRule
    reduces: bool
    """Whether the job combines its chunks' results instead of staging them."""
    groups: bool = False
    """Whether the job maps the groups of the reduced result, which is stored in pieces then."""
    merges: bool = False
    """Whether the job merges its chunks' results into files instead of staging them."""
    wanted: Wanted = field(default_factory=Wanted)
    """What the job's checks need to know of each staged result."""
    checks_rows: bool = False
    """Whether the job checks the rows of each chunk."""

    def check(self, segment: Segment) -> Segment:
        """Return the valid entries, and count the others as problems."""
        problems: Problems = dict(segment.problems)
        completions = self._completions(segment.completions, problems)
        failures = self._failures(segment.failures, problems)
        return Segment(completions, failures, segment.schemas, problems)

    @cached_property
    def _planned(self) -> pl.DataFrame:
        """Id and folder of each chunk, and the folder of earlier releases if it differs."""
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
            "a text is too long": pl.all_horizontal(
                *(_text(name, MAX_NAME) for name in _NAMES),
                _text("encodings", 4 * MAX_NAME),
                _text("checked", MAX_TEXT),
                _text("rewritten", 4 * MAX_NAME),
            ),
            "its attempt is not a valid id": pl.col("attempt").str.contains(ATTEMPT_PATTERN),
            "its parts are not those of an upload": _are_short(rows["parts"], MAX_ETAG),
            "its left_out is not a list of objects": _are_short(rows["left_out"], MAX_REASON),
            "its filled is not a list of columns": _are_short(rows["filled"], MAX_NAME),
        }
        rows = _keep_valid(rows, common, problems)
        if self.merges:
            of_merge = pl.col("batch").str.starts_with(MERGE)
            merged = self._merged(rows.filter(of_merge), problems)
            chunks = self._partials(rows.filter(~of_merge), problems)
            return pl.concat([chunks, merged])
        if not self.reduces:
            return self._staged(rows, problems)
        of_reduce = pl.col("batch") == REDUCE
        reduced = self._reduced(rows.filter(of_reduce), problems)
        return pl.concat([self._partials(rows.filter(~of_reduce), problems), reduced])

    def _staged(self, rows: pl.DataFrame, problems: Problems) -> pl.DataFrame:
        """Check completions of chunks that were staged one by one."""
        rows, folders = self._of_plan(rows, problems)
        needs = bool(self.wanted.identity()) or self.checks_rows
        rows, folders = self._with_figures(rows, problems, self.wanted, folders, is_needed=needs)
        keys = (are_keys_of(self.output, self.run, column) for column in folders)
        return self._tokens(rows, pl.any_horizontal(keys), problems)

    def _reduced(self, rows: pl.DataFrame, problems: Problems) -> pl.DataFrame:
        """Check completions of the whole reduce."""
        checks = {
            "it names no step of the reduce": pl.col("chunk").str.contains(f"^{NODE_NAME}$")
            & (pl.col("index") == 0)
        }
        if self.groups:
            checks["its result is not in pieces, as those of its job are"] = (
                (pl.col("upload") == PARTIAL)
                & (pl.col("parts").list.len() == 0)
                & (pl.col("uri") == pl.lit(self.prefix + "reduced/") + pl.col("attempt") + "/")
            )
            return _keep_valid(rows, checks, problems)
        key = are_keys_of(self.output, self.run)
        needs = bool(self.wanted.identity())
        rows, _ = self._with_figures(rows, problems, self.wanted, is_needed=needs)
        return self._tokens(_keep_valid(rows, checks, problems), key, problems)

    @staticmethod
    def _with_figures(
        rows: pl.DataFrame,
        problems: Problems,
        wanted: Wanted,
        beside: pl.DataFrame | None = None,
        *,
        is_needed: bool,
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Keep the rows with the figures that checks need; return them with the rows beside them.

        Without figures a result would pass checks as if it had no nulls.
        """
        beside = rows.select() if beside is None else beside
        if not is_needed:
            return rows, beside
        known = [
            is_checked(attempt, count, text, wanted)
            for attempt, count, text in rows.select("attempt", "rows_out", "checked").iter_rows()
        ]
        valid = pl.Series(known, dtype=pl.Boolean)
        kept = _keep_valid(rows, {"it lacks the figures of the job's checks": valid}, problems)
        return kept, beside.filter(valid) if beside.width else beside

    def _merged(self, rows: pl.DataFrame, problems: Problems) -> pl.DataFrame:
        """Check completions of merged files; the merge plan decides about folder and number."""
        checks = {"it names no merged file": pl.col("chunk").str.contains(r"^merge/[0-9a-f]{32}$")}
        rows = _keep_valid(rows, checks, problems)
        below = rows["uri"].str.strip_prefix(self.output)
        folders = below.str.extract(r"(?s)^(.*/)?[^/]*$", 1).fill_null("")
        return self._tokens(rows, are_keys_of(self.output, self.run, folders), problems)

    def _partials(self, rows: pl.DataFrame, problems: Problems) -> pl.DataFrame:
        """Check completions of chunks whose results were combined."""
        rows, _ = self._of_plan(rows, problems)
        # A reduce is measured at its end.
        wanted = self.wanted if self.merges else Wanted()
        needs = bool(wanted.identity()) or self.checks_rows
        rows, _ = self._with_figures(rows, problems, wanted, is_needed=needs)
        rest = pl.col("uri").str.strip_prefix(self.prefix)
        checks = {
            "its result is no partial, as those of its job are": (pl.col("upload") == PARTIAL)
            & (pl.col("parts").list.len() == 0),
            "it names a partial outside of its run": pl.col("uri").str.starts_with(self.prefix)
            & rest.str.contains(f"^{PARTIAL_NAME}$"),
        }
        return _keep_valid(rows, checks, problems)

    def _tokens(self, rows: pl.DataFrame, key: pl.Expr, problems: Problems) -> pl.DataFrame:
        """Check final keys and the tokens of staged outputs."""
        rows = _keep_valid(rows, {"its key is not that of its chunk in this run": key}, problems)
        allowed = _allowed(rows, self.tokens)
        return _keep_valid(rows, {"staging could not have given its token": allowed}, problems)

    def _of_plan(self, rows: pl.DataFrame, problems: Problems) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Keep the rows of planned chunks; return them with the folders that they may have."""
        inside = pl.col("index").is_between(0, len(self.plan) - 1)
        rows = _keep_valid(rows, {"the plan has no such chunk": inside}, problems)
        ids = self._planned["id"].gather(rows["index"])
        rows = _keep_valid(rows, {"the plan has no such chunk": pl.col("chunk") == ids}, problems)
        return rows, self._planned.drop("id")[rows["index"]]

    def _failures(self, rows: pl.DataFrame, problems: Problems) -> pl.DataFrame:
        if rows.is_empty():
            return rows
        checks = {
            "a number is negative, not finite or too large": _seconds("at"),
            "a text is too long": pl.all_horizontal(
                *(_text(name, MAX_NAME) for name in ("batch", "worker", "error")),
                *(_text(name, MAX_TEXT) for name in ("message", "trace", "where", "line")),
            ),
            "its attempt is not a valid id": pl.col("attempt").str.contains(ATTEMPT_PATTERN),
            "a value is missing": pl.col("transient").is_not_null(),
        }
        return self._of_plan(_keep_valid(rows, checks, problems), problems)[0]


def _ids(plan: Plan) -> pl.Series:
    ids = pl.Series(pl.from_arrow(plan.chunk_table["id"]))
    return ids.cast(pl.Binary).bin.encode("hex")


def _are_short(lists: pl.Series, most: int) -> pl.Series:
    """Whether each row has at most MAX_PARTS texts of at most `most` bytes."""
    lengths = lists.explode(empty_as_null=False).str.len_bytes()
    short = lists.list.len() <= MAX_PARTS
    if lengths.null_count() or (lengths.max() or 0) > most:  # type: ignore[operator]
        sizes = lists.list.eval(pl.element().str.len_bytes().fill_null(most + 1))
        short &= sizes.list.max().fill_null(0) <= most
    return short


def _allowed(rows: pl.DataFrame, rule: TokenRule) -> pl.Series:
    """Apply `TokenRule.allows` to whole columns."""
    upload = rows["upload"]
    allowed = pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True)
    if rule.staged is not None:
        rest = pl.col("uri").str.strip_prefix(rule.output)
        token = pl.concat_str(pl.lit(rule.staged), rest, pl.lit("."), pl.col("attempt"))
        allowed = rows.select(pl.col("upload") == token).to_series()
    if rule.ids is not None and not allowed.all():
        allowed |= upload.str.contains(rule.ids) & ~upload.is_in([".", ".."])
    return allowed


def _keep_valid(
    rows: pl.DataFrame, checks: Mapping[str, pl.Expr | pl.Series], problems: Problems
) -> pl.DataFrame:
    """Keep the rows that pass all checks; count each other row under the first check it fails."""
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
    """Count entries that are refused for a reason; keep the first example."""
    counted, first = problems.get(reason, (0, example))
    problems[reason] = (counted + count, first)


def _example(rows: pl.DataFrame) -> str:
    row = rows.row(0, named=True)
    where = row.get("uri") or row.get("message") or ""
    text = f"chunk {row['index']} of batch {row['batch']}, by worker {row['worker']}: {where}"
    text = " ".join(text.split())  # One line: untrusted text must not look like a message of ours.
    return text if len(text) <= 3 * _SHOWN else f"{text[: 3 * _SHOWN]} …"


def join_problems(several: Sequence[Problems]) -> Problems:
    """Return the problems of several segments as one."""
    problems: Problems = {}
    for part in several:
        for reason, (count, example) in part.items():
            note(problems, reason, count, example)
    return problems


def sentences(problems: Problems) -> tuple[str, ...]:
    """Return one sentence per kind of problem."""
    return tuple(
        f"{count:,} entries of the ledger are not counted ({reason}), such as {example}"
        for reason, (count, example) in problems.items()
    )
