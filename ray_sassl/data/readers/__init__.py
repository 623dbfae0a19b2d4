"""The forms in which shards come, one file each: Parquet, WebDataset tars, folders of images."""
