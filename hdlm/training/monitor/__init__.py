"""Measurements of a run: throughput, metrics and trackers."""
