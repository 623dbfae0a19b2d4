"""Evaluation protocols, one file each: `protocols/knn.py` is `ray-sassl evaluate RUN knn`."""
