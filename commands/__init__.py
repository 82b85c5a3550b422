"""One file a mode: a function from a working directory and options to files written and a short summary."""
