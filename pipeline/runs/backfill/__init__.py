"""Backfills: the runs of one job over windows of its input.

The windows are planned together and committed one by one, under a desired state that users may
change during the backfill.
"""
