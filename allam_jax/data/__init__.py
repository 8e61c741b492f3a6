"""From document shards to batches: shuffling, packing, mixing, sharing among processes; all of it can be resumed."""
