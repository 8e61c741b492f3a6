"""What a run will need on a cluster that is only described: memory, communication, time and energy."""
