"""Checks of cluster definitions and plans of their size, without a cluster. Nothing here imports Ray."""
