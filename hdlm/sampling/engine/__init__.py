"""The engine: many sequences, each at its own step, that share calls of the network."""
