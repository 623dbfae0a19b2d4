"""Search spaces over the config tree: one file each, found by name like every plug-in."""
