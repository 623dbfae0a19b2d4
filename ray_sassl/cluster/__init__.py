"""What can be said of a cluster without one: whether its definition holds together, and how large it has to be. Nothing here imports
Ray."""
