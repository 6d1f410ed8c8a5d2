"""Inspect and maintain outputs from storage alone, without a driver: status, verify, vacuum."""
