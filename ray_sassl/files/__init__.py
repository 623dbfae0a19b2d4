"""Files: local and object storage, paths, locks, the cache folder, safe YAML and JSON."""
