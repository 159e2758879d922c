"""Benchmarks: `python -m benchmarks` (or `make bench`). One file a topic; each lists `Benchmark`s."""
