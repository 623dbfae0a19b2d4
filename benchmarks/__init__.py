"""One script per speed claim: `python -m benchmarks.NAME`, or all of them and one table with `python -m benchmarks`."""
