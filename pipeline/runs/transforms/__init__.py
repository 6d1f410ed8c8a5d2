"""Read the source of transforms: what a function reaches, and the fingerprint of it.

Nothing here imports a user's module. `source` finds modules and cuts them into units, `names`
resolves the names of a unit by Python's scopes, `effects` tells what importing does, `reach`
follows it all, and `fingerprint` hashes what was reached.
"""
