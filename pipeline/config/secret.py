"""Find a secret in what a server sends, however it is spelled, and mask it in what people see."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote, unquote_plus

from pipeline.masking import MASK, mask_text
from pipeline.printable import printable_line

MIN_MASKED = 8
"""Minimum length of a secret that is masked in answers; a shorter one is refused there."""
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Secret:
    """The secret of requests; empty if they have none. Its repr does not show it."""

    text: str = field(default="", repr=False)

    @property
    def forms(self) -> tuple[str, ...]:
        """The secret, and the user and password that it stands for in Basic authentication."""
        if not self.text:
            return ()
        pair = _basic(self.text)
        password = pair.partition(":")[2]
        more = (pair, password if len(password) >= MIN_MASKED else "")
        return (self.text, *filter(None, more))

    def is_in(self, text: str) -> bool:
        """Whether a text has the secret, plain, or spelled as addresses or JSON spell it."""
        forms = [form.lower() for form in self.forms]  # Servers change the case of hosts.
        return bool(forms) and any(form in spelled for spelled in _spelled(text) for form in forms)

    def masked(self, text: str) -> str:
        """Return a text, such as a line of an error, without secrets and control characters."""
        for form in self.forms:
            text = text.replace(form, MASK)
        return MASK if self.is_in(text) else printable_line(mask_text(text))

    def masked_body(self, body: bytes) -> bytes | None:
        """Mask the secret in a body: some servers repeat requests. None if it cannot be masked.

        It cannot where it is spelled in another way, or so short that it may be a part of any
        value.
        """
        for form in self.forms:
            if len(form) >= MIN_MASKED:
                body = body.replace(form.encode(), MASK.encode())
        return None if self.is_in(body.decode("utf-8", "replace")) else body


def _basic(text: str) -> str:
    """Return the user and the password that a text encodes; empty if it does not."""
    try:
        pair = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
    return pair if ":" in pair and pair.isprintable() else ""


def _spelled(text: str) -> Iterator[str]:
    yield text.lower()
    if "%" in text or "+" in text:
        yield unquote(text).lower()
        yield unquote_plus(text).lower()
    if "\\" in text:
        plain = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else found[2], text)
        yield plain.lower()
        yield unquote(plain).lower()
