"""Backfills: the runs of one job over windows of its input.

They are planned at once and committed window by window, under a desired state that users may change
while they run.
"""
