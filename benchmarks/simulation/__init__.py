"""Scale beyond one machine: a discrete-event simulation of a run, from measured costs.

parameters.json   what everything costs, each with where it comes from
parameters.py     the same, typed
case.py           what is simulated
costs.py          what one chunk, one batch, one phase of it costs (arithmetic)
model.py          driver, scheduler, workers, Prefect server and S3 over time (SimPy)
answer.py         what came of it: time, where it goes, requests, cost, bottlenecks
curve.py          the same on other numbers of workers
charts.py         a plot for the terminal, a page for the browser
probes.py         measure the parameters on a stack that is up
fitting.py        and write them down: chunkmap bench fit
"""
