"""From document shards to batches: shuffling, packing, mixing, sharing out among processes. Checkpointable."""
