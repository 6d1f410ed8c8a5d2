"""Transforms: load them from allowed modules, fingerprint what they reach, run them safely."""
