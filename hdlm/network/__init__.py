"""The backbone: tokens to numbers. It knows nothing of noise and needs nothing but torch."""

from __future__ import annotations

from hdlm.network.cache import KVCache
from hdlm.network.config import DDiTConfig
from hdlm.network.ddit import DDiT, has_compiler
from hdlm.network.passes import Pass
from hdlm.network.static import StaticBatch

__all__ = ["DDiT", "DDiTConfig", "KVCache", "Pass", "StaticBatch", "has_compiler"]
