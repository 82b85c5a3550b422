"""What training watches: the loss, the gradients, and where a number stopped being finite."""
