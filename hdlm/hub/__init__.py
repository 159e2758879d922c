"""Weights of the world: published checkpoints in, this project's out."""
