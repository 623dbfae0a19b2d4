"""Studies: search spaces over the config tree, the searcher, the record of trials, and the report. Nothing here imports Ray."""
