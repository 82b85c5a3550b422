"""Training in several processes: ranks, shards of a state, and a network's blocks."""
