"""The published place of the samplers of gamma-hybrid models: `sampling` (NAR) and `sampling_sar` (SAR)."""

from hdlm.gamma_hybrid import sampling, sampling_sar

__all__ = ["sampling", "sampling_sar"]
