"""Benchmarks: `python -m benchmarks` (or `make bench`). Each file measures one topic and lists its `Benchmark`s."""
