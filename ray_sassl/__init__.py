"""Self-supervised pretraining of image encoders on Ray, with style augmentation (SASSL) and feature augmentation (FA)."""

__version__ = "0.1.0"
