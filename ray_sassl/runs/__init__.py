"""A run directory: what a training process writes to it, and what is read back from it."""
