"""Benchmarks of single parts, as tests: `pytest benchmarks/micro`."""
