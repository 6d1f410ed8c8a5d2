"""What the token of a staged output can be: the one rule, for one token and for a whole column.

Publishing copies from tokens and deletes them, and workers write them down: a token that staging
could not have given for this key and this attempt is refused, wherever it points.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

ATTEMPT_PATTERN: Final = r"^[0-9a-f]{32}$"
"""An attempt, as `uuid.uuid4().hex` makes it. In Python's syntax and in Rust's."""
UPLOAD_ID_PATTERN: Final = r"^[^/\\\s\x00-\x1f\x7f]{1,1024}$"
"""The id of a multipart upload. Servers may use it as the name of a folder."""
_DOTS: Final = (".", "..")


@dataclass(frozen=True, slots=True)
class TokenRule:
    """What staging below one output gives."""

    output: str
    """URI of the output prefix, with a slash at its end."""
    staged: str | None
    """What stands for the output in a token that names an object or a file: the token of
    `<output><rest>` is `<staged><rest>.<attempt>`. None if no token names one."""
    ids: str | None
    """Pattern of the tokens that are ids of uploads at the final key. None if there are none."""

    def token_of(self, uri: str, attempt: str) -> str:
        """The token that names an object or a file; a made-up id where tokens are ids only."""
        if self.staged is None:
            return f"upload-{int(attempt, 16)}"
        return f"{self.staged}{uri.removeprefix(self.output)}.{attempt}"

    def allows(self, uri: str, upload: str, attempt: str) -> bool:
        """Whether staging this URI with this attempt could have given this token."""
        if re.fullmatch(ATTEMPT_PATTERN, attempt) is None or not uri.startswith(self.output):
            return False
        if self.staged is not None and upload == self.token_of(uri, attempt):
            return True
        if self.ids is None or upload in _DOTS:
            return False
        return re.fullmatch(self.ids, upload) is not None
