"""Configs from Python: `load_config`."""

from ray_sassl.runs.configs import load_config

__all__ = ["load_config"]
