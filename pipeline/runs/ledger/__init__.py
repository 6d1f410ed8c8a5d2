"""The state of a run beside its output: what its entries may say, and how they are stored."""
