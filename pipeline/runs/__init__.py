"""A run of a job, from plan to publish."""
