"""A pipeline: stages one after the other, each of which is exactly-once by itself.

`driver.py` decides what runs; a stage whose input, code and parameters are unchanged does not.
`state.py` keeps notes on what was done. They save work and feed conditions; without them each stage
is checked again, and nothing is done twice but calls.
"""
