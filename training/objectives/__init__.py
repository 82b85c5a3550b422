"""What is minimised: a loss for each example of a batch."""
