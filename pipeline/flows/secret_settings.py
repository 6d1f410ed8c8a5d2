"""Find Prefect's settings that hold a secret, which workers must not have."""

from __future__ import annotations

from pydantic import SecretStr
from pydantic_settings import BaseSettings


def secrets_of(settings: BaseSettings, above: str = "") -> list[str]:
    """List the names of settings that hold a secret, such as `api.auth_string`, without values.

    Args:
        settings: The settings of Prefect, or a section of them.
        above: A prefix of each name.
    """
    names: list[str] = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseSettings):
            names += secrets_of(value, f"{above}{name}.")
        elif _is_secret(name, value):
            names.append(f"{above}{name}")
    return names


def _is_secret(name: str, value: object) -> bool:
    if isinstance(value, SecretStr):
        text = value.get_secret_value()
        # An address is secret only if it has a password; that of Prefect's SQLite file has none.
        return "@" in text if "://" in text else bool(text)
    return name == "custom_headers" and bool(value)


def held_secrets() -> list[str]:
    """List the names of Prefect's settings that hold a secret in this process."""
    from prefect.settings import get_current_settings

    return secrets_of(get_current_settings())
