"""Change one field of a footer at a time, and see what chunkmap makes of the file: `make fuzz`."""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import polars as pl

from tests.fuzz import corpus
from tests.fuzz.changes import change_footer
from tests.fuzz.parent import Result, done
from tests.fuzz.thrift_tree import footer_of, with_footer

FINE: Final = frozenset({"equal", "refused in planning", "refused in reading"})


@dataclass(frozen=True, slots=True)
class Case:
    """One change of one file."""

    number: int
    file: str
    what: str
    path: Path


def cases(
    folder: Path, seed: int, numbers: Sequence[int], files: Sequence[str] | None = None
) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Yield changed files and the jobs that read them; each follows from seed and number alone."""
    originals = corpus.footers()
    for at, data in enumerate(originals.values()):
        (folder / f"{at}.parquet").write_bytes(data)
    names = list(originals)
    trees = {name: footer_of(data) for name, data in originals.items()}
    chosen = names if files is None else list(files)
    for number in numbers:
        random = Random(f"{seed} {number}")
        name = random.choice(chosen)
        change = change_footer(trees[name], random)
        path = folder / f"case-{number}.parquet"
        path.write_bytes(with_footer(originals[name], change.footer))
        job = {
            "path": str(path),
            "original": str(folder / f"{names.index(name)}.parquet"),
            "column": change.column or random.choice(_columns(originals[name])),
            "ranges": number % 2 == 1,
            "footer": len(change.footer),
        }
        yield Case(number, name, change.what, path), job
        path.unlink()


def _columns(data: bytes) -> list[str]:
    return list(pl.scan_parquet(io.BytesIO(data)).collect_schema().names())


def is_fine(case: Case, result: Result) -> bool:
    """Tell whether a result is one of those that are allowed."""
    if result.outcome == "refused by others":
        # Others stumble over notes that we do not read, or read as if they were not there.
        return case.what.startswith("field 5")
    return result.outcome in FINE


def report(case: Case, result: Result, seed: int) -> str:
    """Return the lines that tell of a failure."""
    return (
        f"{result.outcome}: {case.file}: {case.what}\n"
        f"    {result.detail}\n"
        f"    again: make fuzz SEED={seed} ARGS='--only {case.number}'"
    )


def main() -> int:
    """Run changes; return 1 if some failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="number of changes")
    parser.add_argument("--seed", type=int, default=0, help="where to start")
    parser.add_argument("--only", type=int, help="number of the one change to run")
    parser.add_argument("--keep", type=Path, help="folder that changed files stay in")
    options = parser.parse_args()
    numbers = range(options.count) if options.only is None else [options.only]
    outcomes: Counter[str] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for case, result in done(cases(Path(folder), options.seed, numbers)):
            outcomes[result.outcome] += 1
            if options.keep is not None:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / case.path.name).write_bytes(case.path.read_bytes())
            if not is_fine(case, result):
                failed += 1
                print(report(case, result, options.seed), flush=True)
    for outcome, count in outcomes.most_common():
        print(f"{count:8,}  {outcome}")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
