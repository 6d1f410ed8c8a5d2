"""What users write: job files and settings, with errors that name file and line."""
