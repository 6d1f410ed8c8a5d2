"""Decide about the commits of several outputs together: all of them are published, or none.

    <first output>.chunkmap/decisions/<run>.<n>.json

A publisher freezes its commits, claims every output with the URI of a decision that is not stored
yet, and stores the decision. That is the moment at which the commits are published: from then on,
whoever meets one of the claims rolls it forward. Whoever meets a claim without a decision waits,
and then decides that nothing is published, since the publisher may have died. Of two decisions, the
one that was stored first counts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.errors import AlreadyExistsError, StateError
from pipeline.storage import Storage, join, state_prefix
from pipeline.storage.documents import parse_stored, seal_json
from pipeline.table.errors import DamagedStateError, refuse_newer
from pipeline.table.manifest import Claim

DECISION_VERSION = 1
"""Format of decisions."""
UNDECIDED_SECONDS = 10.0
"""Seconds that a publisher has, from when another process meets its claim, to decide."""
POLL_SECONDS = 0.2
"""Seconds between two looks for a decision."""


class DecidedOutput(BaseModel):
    """An output that a decision names."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    output: str
    """URI of the output prefix."""
    base: int
    """Number of the manifest that its claim is based on."""
    commits: tuple[str, ...]
    """Names of the commits that its claim adds."""


class Decision(BaseModel):
    """A stored decision."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = DECISION_VERSION
    verdict: Literal["publish", "withdrawn"]
    """Whether the commits of all outputs are published, or none of them."""
    outputs: tuple[DecidedOutput, ...] = ()

    def publishes(self, output: str, claim: Claim) -> bool:
        """Whether a claim of an output is one of those that are published."""
        named = DecidedOutput(output=output, base=claim.base, commits=claim.commits)
        return self.verdict == "publish" and named in self.outputs


def decision_uri(output: str, run: str, number: int) -> str:
    """Return the URI of a run's n-th decision, whose first output this is."""
    return join(state_prefix(output), "decisions", f"{run}.{number}.json")


def read_decision(storage: Storage, uri: str) -> Decision | None:
    """Read a decision; None if there is none yet.

    Raises:
        DamagedStateError: It is damaged.
        StateError: It is of a newer release.
    """
    blob = storage.get_or_none(uri)
    if blob is None:
        return None
    try:
        decision = parse_stored(Decision, blob.data, uri)
    except StateError as error:
        raise DamagedStateError(uri, error) from error
    refuse_newer(uri, decision.version, DECISION_VERSION)
    return decision


def is_decided(storage: Storage, uri: str) -> bool:
    """Whether a decision is stored, also a damaged one. Raises StateError if it is newer."""
    try:
        return read_decision(storage, uri) is not None
    except DamagedStateError:
        return True


def decide(storage: Storage, uri: str, outputs: Sequence[DecidedOutput] = ()) -> Decision:
    """Decide to publish the commits of these outputs, or nothing; return what was decided.

    It is another decision than this one if another process was faster.
    """
    verdict: Literal["publish", "withdrawn"] = "publish" if outputs else "withdrawn"
    decision = Decision(verdict=verdict, outputs=tuple(outputs))
    try:
        # Equal decisions have equal bytes, whoever stores them: a lost reply changes nothing.
        storage.put_new(uri, seal_json(decision.model_dump_json(indent=1).encode()))
    except AlreadyExistsError:
        stored = read_decision(storage, uri)
        if stored is None:
            raise DamagedStateError(uri, "it was deleted") from None
        return stored
    return decision


def await_decision(storage: Storage, uri: str) -> Decision:
    """Return a decision; withdraw it if its publisher does not decide in time."""
    deadline = time.monotonic() + UNDECIDED_SECONDS
    while (decision := read_decision(storage, uri)) is None:
        if time.monotonic() >= deadline:
            return decide(storage, uri)
        time.sleep(POLL_SECONDS)
    return decision
