"""Copies of training data among samples: pixels of both are compared, and held-out data say what is usual."""
