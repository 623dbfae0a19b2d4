"""One pretraining run on Ray: checks before the start, the stream, the workers."""
