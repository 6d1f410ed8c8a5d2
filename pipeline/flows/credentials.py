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
        elif (isinstance(value, SecretStr) and value.get_secret_value()) or (
            name == "custom_headers" and value
        ):
            found.append(f"{above}{name}")
    return found


def held_secrets() -> list[str]:
    """Names of Prefect's settings that hold a secret in this process."""
    from prefect.settings import get_current_settings

    return secrets_of(get_current_settings())
