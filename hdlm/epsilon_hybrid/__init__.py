"""The published place of the samplers of epsilon-hybrid models."""

from hdlm.epsilon_hybrid.sample import full_diff, full_diff_shifted, semi_diff, semi_diff_shifted

__all__ = ["full_diff", "full_diff_shifted", "semi_diff", "semi_diff_shifted"]
