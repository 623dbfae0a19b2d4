"""Views: randomly changed copies of an image, a pair and perhaps small ones beside it.

`recipes.py` holds the numbers of the papers, `draw.py` turns them into parameters for each sample, `crop.py` does the geometry, and
`opencv.py` (CPU, no torch) or `ops.py` (batched torch, any device) the colors. Only `ops.py` imports torch.
"""
