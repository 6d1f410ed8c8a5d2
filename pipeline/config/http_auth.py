"""The header that authorises requests. A file names where its secret is, and never holds it."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from pipeline.config.job_part import Part, VariableName
from pipeline.errors import UsageError
from pipeline.masking import is_secret_name, mask_text

PLACEHOLDER = "{secret}"
"""What stands for the secret in the value of a header."""
_TOKEN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
_SECRET_NAME = re.compile(
    r"(^|[-_.])(cookie2?|jwt|otp|sid|sessid|session(_?id)?|[a-z]*sess(ion)?id)$"
    r"|(?<![a-z])(api|app|auth|client|consumer|license|licence|product|service|session|subscription"
    r"|user|x)[-_.]?key$"
    r"|^key$",
    re.IGNORECASE,
)
"""Names of parameters and headers that hold secrets, in requests."""
_SECRET = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")

HeaderName = Annotated[str, Field(pattern=_TOKEN)]
HeaderValue = Annotated[str, Field(pattern=r"^[\x20-\x7e\t]*$")]


def refuse_secrets(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse headers or parameters whose name or value is that of a secret.

    Raises:
        ValueError: There is one.
    """
    for name, value in values.items():
        if names_secret(name) or (isinstance(value, str) and mask_text(value) != value):
            raise ValueError(
                f"{name!r} looks like a secret, which this file must not hold; use http.auth"
            )
    return values


def names_secret(name: str) -> bool:
    """Whether a parameter or a header of this name holds a secret."""
    return is_secret_name(name) or _SECRET_NAME.search(name) is not None


class Auth(Part):
    """A header that holds a secret."""

    key: ClassVar[str] = "http.auth"
    """Key of this section, for messages."""

    header: HeaderName = "Authorization"
    """Name of the header."""
    value: HeaderValue = f"Bearer {PLACEHOLDER}"
    """Value of the header; `{secret}` stands for the secret."""
    env: VariableName | None = None
    """Name of the environment variable that holds the secret."""
    secret: Annotated[str, Field(min_length=1)] | None = None
    """Name of the Prefect Secret block that holds the secret."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.env is None) == (self.secret is None):
            raise ValueError("set `env` or `secret`: where the secret is")
        if PLACEHOLDER not in self.value:
            raise ValueError(f"`value` must contain {PLACEHOLDER}, which stands for the secret")
        return self

    @property
    def where(self) -> str:
        """Place of the secret, for messages."""
        return f"variable {self.env}" if self.env else f"Secret block {self.secret}"

    def checked(self, secret: str | None) -> str:
        """Return the secret if it can be sent in a header. The error does not show it.

        Raises:
            UsageError: It is missing, or has characters that a header cannot have.
        """
        if not secret:
            raise UsageError(
                f"the {self.where} holds no secret (http.auth)",
                hint=f"export {self.env}=…" if self.env else "set its value in Prefect",
            )
        if not _SECRET.fullmatch(secret):
            raise UsageError(
                f"the secret in the {self.where} has characters that a header cannot have "
                "(http.auth): a line break, spaces around it, or letters beyond ASCII"
            )
        return secret

    def header_value(self, secret: str | None) -> str:
        """Return the value of the header. Raises UsageError as `checked`."""
        return self.value.replace(PLACEHOLDER, self.checked(secret))
