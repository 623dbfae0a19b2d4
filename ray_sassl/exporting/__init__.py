"""An encoder leaves the run that made it: loaded in Python, written for other libraries, applied to whole data sets."""
