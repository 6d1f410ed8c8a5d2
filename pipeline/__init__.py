"""Execution: jobs, storage, runs and their engines. Import the submodules: this stays empty."""
