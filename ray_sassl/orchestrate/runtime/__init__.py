"""What every command on Ray needs: the session, capacity, devices, weights, metrics, progress."""
