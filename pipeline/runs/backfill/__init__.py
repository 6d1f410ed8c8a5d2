"""Backfills: the runs of one job over many windows, planned at once, committed window by window.

records.py    what a backfill is, what users wish while it runs, how far its windows are
store.py      where that lies: `<output>.chunkmap/backfills/<id>/`
selecting.py  which windows are to be done, and why the others are not (pure)
planning.py   from a job and a range to a drafted backfill; creating it, once
board.py      how far each window is
group.py      one of its runs: some windows mapped as one set of chunks
driving.py    all of its runs, a few at a time, under what users wish meanwhile
status.py     what anybody can see of it, from storage alone
counting.py   counting its windows anew, when nobody drives it
layout.py     windows as the cells of a calendar (pure)
attempts.py   every try of a window's chunks
forecasting.py  how long it will take, as far as earlier runs tell
reporting.py  its report
"""
