"""`python -m ray_sassl.cli`."""

from ray_sassl.cli import main

main()
