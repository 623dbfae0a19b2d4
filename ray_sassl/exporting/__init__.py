"""Use of trained encoders: load them in Python, write them for other libraries, apply them to whole data sets."""
