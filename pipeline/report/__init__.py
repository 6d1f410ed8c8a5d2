"""Reports: the figures of a run as one offline HTML page, as JSON and as Markdown.

Importing this package imports nothing else; Altair, Great Tables and vl-convert load only when
a page is rendered.
"""
