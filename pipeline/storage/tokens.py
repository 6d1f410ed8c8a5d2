"""Define the rule for tokens of staged outputs, for a single token and for a whole column.

Workers store tokens, and publishing copies from and deletes the objects that they name. So a token
that staging cannot have made for this key and attempt is refused, wherever it points.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pipeline.errors import InvalidUriError
from pipeline.uris import parse

ATTEMPT_PATTERN: Final = r"^[0-9a-f]{32}$"
"""Pattern of attempts (`uuid.uuid4().hex`), valid in the regex syntax of Python and of Rust."""
UPLOAD_ID_PATTERN: Final = r"^[^/\\\s\x00-\x1f\x7f]{1,1024}$"
"""Pattern of the ids of multipart uploads. Servers may use an id as the name of a folder."""
_DOTS: Final = (".", "..")


@dataclass(frozen=True, slots=True)
class TokenRule:
    """Rule for the tokens of outputs that are staged below a prefix."""

    output: str
    """URI of the output prefix, with a slash at its end."""
    staged: str | None
    """Prefix of tokens that name an object or a file: the token of `<output><rest>` is
    `<staged><rest>.<attempt>`. None if no token names one."""
    ids: str | None
    """Pattern of tokens that are ids of uploads at the final key. None if there are none."""

    def token_of(self, uri: str, attempt: str) -> str:
        """Return the token that names an object or a file; an invented id if tokens are ids."""
        if self.staged is None:
            return f"upload-{int(attempt, 16)}"
        return f"{self.staged}{uri.removeprefix(self.output)}.{attempt}"

    def allows(self, uri: str, upload: str, attempt: str) -> bool:
        """Whether staging this URI in this attempt can have made this token."""
        if re.fullmatch(ATTEMPT_PATTERN, attempt) is None or not self._is_below(uri):
            return False
        if self.staged is not None and upload == self.token_of(uri, attempt):
            return True
        if self.ids is None or upload in _DOTS:
            return False
        return re.fullmatch(self.ids, upload) is not None

    def _is_below(self, uri: str) -> bool:
        """Whether a URI is below the output, and in its normal form there."""
        if not uri.startswith(self.output):
            return False
        try:
            return parse(uri).uri == parse(self.output).uri + uri.removeprefix(self.output)
        except InvalidUriError:
            return False
