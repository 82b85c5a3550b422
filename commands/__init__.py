"""A file for each mode: a function of a working directory and options, which writes files and returns a summary."""
