"""Optimizers, their learning rates, and the average of the weights."""
