"""The network: tokens to numbers. It does not depend on noise and needs only torch."""

from __future__ import annotations

from hdlm.network.cache import KVCache
from hdlm.network.config import DDiTConfig
from hdlm.network.ddit import DDiT, has_compiler
from hdlm.network.passes import Pass
from hdlm.network.static import StaticBatch

__all__ = ["DDiT", "DDiTConfig", "KVCache", "Pass", "StaticBatch", "has_compiler"]
