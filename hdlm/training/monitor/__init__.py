"""What is recorded while a model is trained: throughput, metrics and trackers."""
