"""Bounds on the likelihood of text, with standard errors."""
