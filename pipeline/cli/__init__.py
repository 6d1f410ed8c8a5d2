"""The command line, `chunkmap`. Commands import what they need when they run, to start fast."""

from pipeline.cli.app import app, main

__all__ = ["app", "main"]
