"""The engine: many sequences, each at its own step, that share network calls."""
