"""Whole data sets on a pool of actors: features, embeddings, stylized copies, banks, distillation, detection."""
