"""Where bytes are: local and object storage, the cache folder, safe YAML and JSON lines."""
