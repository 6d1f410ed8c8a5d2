"""Start, stop and describe the local services: `chunkmap up`, `down` and `env`."""

from __future__ import annotations

import shlex
from dataclasses import asdict

from pipeline.cli.output import notes, out, print_json, warn
from pipeline.cli.terminal import results
from pipeline.cli.waiting import Waiting
from pipeline.cluster import local
from pipeline.config.layers import CREDENTIAL_VARIABLES
from pipeline.config.settings import Settings, ignored_credentials, load_settings

PREFECT_CREDENTIALS = ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY")
"""Variables with credentials of a Prefect server."""


def up(environment: str | None, *, as_json: bool) -> None:
    """Start the local services and print their addresses."""
    settings = load_settings(environment)
    with Waiting(quiet=as_json) as waiting:
        # The addresses are the result of this command, so they go to stdout.
        console = notes if as_json else out
        local.up(settings, lambda line: waiting.line(line, console), waiting)
    warn_of_ignored(load_settings(environment))
    if as_json:
        _show(environment)


def down(environment: str | None, *, as_json: bool) -> None:
    """Stop the local services."""
    with Waiting(quiet=as_json) as waiting:
        console = notes if as_json else out
        local.down(load_settings(environment), lambda line: waiting.line(line, console), waiting)
    if as_json:
        _show(environment)


def env(environment: str | None, *, prefect: bool = False, as_json: bool) -> None:
    """Print the variables with which other tools reach the S3 of the stack, as shell commands.

    Args:
        environment: Name of the environment.
        prefect: Print those of the Prefect server of the settings instead.
        as_json: Print one JSON object.
    """
    settings = load_settings(environment)
    known = PREFECT_CREDENTIALS if prefect else CREDENTIAL_VARIABLES
    variables = _prefect_variables(settings) if prefect else local.s3_variables(settings)
    if as_json:
        print_json(variables)
        return
    # The others name an identity of another service.
    others = [name for name in known if name not in variables]
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    print(f"unset {' '.join(others)}", *lines, sep="\n", file=results())


def _prefect_variables(settings: Settings) -> dict[str, str]:
    if settings.prefect.api_url is None:
        from pipeline.flows.server import no_server

        raise no_server()
    return settings.prefect.environment()


def warn_of_ignored(settings: Settings) -> None:
    """Note that credentials of another S3 are not used while the stack is up."""
    ignored = ignored_credentials(settings)
    if ignored:
        warn(
            f"not used: {', '.join(ignored)}, since the S3 of the local stack is. To use another "
            "one, set its AWS_ENDPOINT_URL_S3, or CHUNKMAP_S3__PROFILE"
        )


def _show(environment: str | None) -> None:
    services = local.status(load_settings(environment))
    print_json({"services": [asdict(service) for service in services]})
