"""The training loop in plain PyTorch: optimizers, schedules, checkpoints and metrics, behind a small `Context`."""
