"""An output as a versioned table, in the sense of Iceberg or Delta.

HEAD.json points to a manifest; a manifest lists commits; a commit lists files. Knows files, and no
runs.
"""
