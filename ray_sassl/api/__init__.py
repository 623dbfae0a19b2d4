"""The functions that `import ray_sassl` offers, by subject; the command line calls the same ones.

Each takes plain values (paths, names, numbers), connects to Ray where it needs a cluster, and returns a typed result. None of them prints
results or needs the main thread. Ray is imported by the functions that use it, so that the others start quickly.
"""
