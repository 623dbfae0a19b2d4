"""The only code that imports Ray: it decides where the functions of `pipeline`, `train` and `run` are carried out."""
