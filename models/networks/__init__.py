"""Networks, a file for each paper."""
