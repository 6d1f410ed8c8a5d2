"""`chunkmap backfill …`: plan, create, watch and control backfills."""
