"""Feature augmentations (arXiv 2410.12396): transformations of projector embeddings, one file each."""
