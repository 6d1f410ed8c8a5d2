"""The report of the suite, as HTML, Markdown and JSON."""
