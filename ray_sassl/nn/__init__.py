"""Building blocks of networks: the method as the loop knows it, heads, momentum copies, queues, batch norms, gathering over workers, pixels
and chunks."""
