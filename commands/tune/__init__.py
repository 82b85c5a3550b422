"""The best setting of sampling at a number of network evaluations."""
