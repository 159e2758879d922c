"""The published samplers of epsilon-hybrid models; see `hdlm.published.samplers`, and `hdlm.sampling` for the rest."""

from hdlm.published.samplers import full_diff, full_diff_shifted, semi_diff, semi_diff_shifted

__all__ = ["full_diff", "full_diff_shifted", "semi_diff", "semi_diff_shifted"]
