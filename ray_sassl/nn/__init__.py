"""Building blocks of networks: heads, momentum copies, queues, batch normalization, gathering over workers, pixels and chunks."""
