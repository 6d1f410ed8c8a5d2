"""The state of a run beside its output: run.json, job.yaml, plan.arrow, completions/.

What is left to do is the plan minus the completions.
"""
