"""The training loop in plain PyTorch: optimisers, schedules, checkpoints and metrics, behind a small `Context`."""
