"""Checkpoints of a run: what they hold, and the folder that keeps them."""
