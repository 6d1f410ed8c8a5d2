"""What goes wrong with which S3 request: rules that a scenario gives to the proxy."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Literal
from urllib.parse import parse_qs, unquote

Act = Literal["pass", "refuse", "lose", "delay", "late", "truncate", "500", "503", "reset"]
"""What happens to a request:

pass        it is forwarded; only the rule's `call` happens
refuse      the connection is closed, nothing is forwarded
reset       the same, with a TCP reset
lose        it is forwarded and takes effect; its reply is lost
delay       it is forwarded late
late        the proxy answers SlowDown, and forwards it later all the same
truncate    the reply says its length, and ends half-way
500, 503    the proxy answers InternalError or SlowDown, nothing is forwarded
"""


@dataclass(frozen=True, slots=True)
class Request:
    """One request that came to the proxy."""

    client: str
    """Which process sent it: each has a port of its own."""
    method: str
    path: str
    """With its percent-encoding taken off; of a listing, with its prefix."""
    query: str
    ranged: bool = False
    copies: bool = False
    """A PUT whose body is another object."""

    @property
    def kind(self) -> str:
        """The S3 action, as its documentation calls it."""
        upload = "uploadId=" in self.query
        match self.method:
            case "GET" if "list-type=" in self.query:
                return "ListObjectsV2"
            case "GET" if "uploads" in self.query:
                return "ListMultipartUploads"
            case "GET":
                return "ListParts" if upload else "GetObject"
            case "PUT" if self.copies:
                return "UploadPartCopy" if upload else "CopyObject"
            case "PUT":
                return "UploadPart" if upload else "PutObject"
            case "POST" if "delete" in self.query:
                return "DeleteObjects"
            case "POST" if upload:
                return "CompleteMultipartUpload"
            case "POST":
                return "CreateMultipartUpload"
            case "DELETE":
                return "AbortMultipartUpload" if upload else "DeleteObject"
        return "HeadObject"

    def __str__(self) -> str:
        return f"{self.client} {self.kind} {self.path}"


def request_of(client: str, method: str, target: str, headers: Container[str]) -> Request:
    """A request from its first line and the names of its headers."""
    path, _, query = target.partition("?")
    prefix = "/".join(parse_qs(query).get("prefix", ()))
    path = unquote(path) + (f"/{prefix}" if prefix else "")
    return Request(client, method, path, query, "range" in headers, "x-amz-copy-source" in headers)


@dataclass(slots=True)
class Rule:
    """Does something to some requests."""

    act: Act
    kind: str = ".*"
    """Pattern of the S3 action, matched as a whole."""
    path: str = ""
    """Pattern that is searched in the path."""
    client: str = ".*"
    """Pattern of the sender, matched as a whole."""
    nth: int = 1
    """The first matching request that it happens to."""
    times: int | None = 1
    """To how many from there on; None means all."""
    share: float = 1.0
    """Probability with which it happens to each of them."""
    seconds: float = 0.0
    """Of a delay, or until a late request arrives."""
    call: Callable[[Request], object] | None = None
    """Called in a thread when it happens: before the request is forwarded, or, where the reply is
    lost, after. The request waits for it."""
    seen: int = 0
    happened: Event = field(default_factory=Event)
    """Set once it has happened (and `call` has returned)."""
    _random: random.Random = field(default_factory=random.Random)
    _lock: Lock = field(default_factory=Lock)

    def seeded(self, seed: int) -> Rule:
        """The same rule, with chances that can be played again."""
        self._random.seed(seed)
        return self

    def strikes(self, request: Request) -> bool:
        """Whether it happens to this request; counts it if it matches."""
        if not (
            re.fullmatch(self.kind, request.kind)
            and re.search(self.path, request.path)
            and re.fullmatch(self.client, request.client)
        ):
            return False
        with self._lock:
            self.seen += 1
            if self.seen < self.nth:
                return False
            if self.times is not None and self.seen >= self.nth + self.times:
                return False
            return self.share >= 1.0 or self._random.random() < self.share


def struck(rules: Sequence[Rule], request: Request) -> Rule | None:
    """The first rule that happens to a request. All of them count it."""
    hits = [rule for rule in rules if rule.strikes(request)]
    return hits[0] if hits else None
