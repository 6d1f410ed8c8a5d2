"""The stored state of a run: run.json, job.yaml, plan.arrow, completions/.

The work left is the plan minus the completions.
"""
