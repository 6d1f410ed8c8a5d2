"""The only Prefect flows and tasks."""
