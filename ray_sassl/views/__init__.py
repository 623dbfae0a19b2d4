"""Views: randomly changed copies of an image, a pair and, for multi-crop, local crops.

`recipes.py` has the numbers of the papers, `keyed.py` the random numbers, `draw.py` draws parameters for each sample from both, `crop.py`
does the geometry, and `opencv.py` (CPU, no torch) or `ops.py` (batched torch, any device) changes the colors. Only `ops.py` imports torch.
"""
