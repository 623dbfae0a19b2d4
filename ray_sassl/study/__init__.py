"""Studies: search spaces over the config tree, what is tried next, the record of what was tried, and its report. Nothing here imports
Ray."""
