"""Load the job file and the settings, with errors that name file and line.

`job.py` is the job file (what is computed), `settings.py` the settings (where and how). Both are
frozen models. The only I/O is reading these files.
"""
