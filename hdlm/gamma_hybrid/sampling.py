"""The published sampler of gamma-hybrid models (NAR); see `hdlm.published.score_samplers`."""

from hdlm.published.score_samplers import get_nar_sampling_fn as get_sa_sampling_fn

__all__ = ["get_sa_sampling_fn"]
