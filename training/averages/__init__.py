"""Moving averages of the weights: EMA, and EDM2's power-function averages."""
