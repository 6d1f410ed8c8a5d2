"""Which of Prefect's settings hold a secret: workers are to have none."""

from __future__ import annotations

from pydantic import SecretStr
from pydantic_settings import BaseSettings


def secrets_of(settings: BaseSettings, above: str = "") -> list[str]:
    """Names of the settings that hold a secret, such as `api.auth_string`; never their values.

    Args:
        settings: Of Prefect, or a section of them.
        above: Begins each name.
    """
    found: list[str] = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseSettings):
            found += secrets_of(value, f"{above}{name}.")
        elif _is_secret(name, value):
            found.append(f"{above}{name}")
    return found


def _is_secret(name: str, value: object) -> bool:
    if isinstance(value, SecretStr):
        text = value.get_secret_value()
        # An address is one only with a password; Prefect's own database, a file, has none.
        return "@" in text if "://" in text else bool(text)
    return name == "custom_headers" and bool(value)


def held_secrets() -> list[str]:
    """Names of Prefect's settings that hold a secret in this process."""
    from prefect.settings import get_current_settings

    return secrets_of(get_current_settings())
