"""The command `chunkmap`. Importing it is cheap: each command imports what it needs when it runs."""

from pipeline.cli.app import app, main

__all__ = ["app", "main"]
