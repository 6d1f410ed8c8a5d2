"""The command `chunkmap`. Importing it is cheap: a command imports what it needs as it runs."""

from pipeline.cli.app import app, main

__all__ = ["app", "main"]
