"""A run directory: what one training process writes into it, and what is read back from it."""
