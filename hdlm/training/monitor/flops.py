"""Arithmetic of training: what a model needs, what a device can do, and their ratio, the utilisation (MFU).

    MFU = FLOPs per second that the model needs / peak FLOP/s of the device            (arXiv 2204.02311, appendix B)

A product with a matrix of `n` weights takes `2 n` FLOPs forwards and twice as many backwards (arXiv 2001.08361), and
attention `4 h` for each pair of query and key in each block, and twice as many backwards. Recomputation (activation
checkpointing) and masked pairs that a kernel could skip are not considered: pairs count as in a dense canvas, where
each position attends to `l` others. In two streams, both have `l` positions that attend to `l` others, and one of them
is projected to the vocabulary.
"""

from __future__ import annotations

import re
import time

import torch

from hdlm.network import DDiTConfig, DecoderConfig, NetworkShape

__all__ = ["peak_flops", "training_flops"]

_PEAKS = (
    (r"\bB200\b", 2250e12),
    (r"\bH(100|200) NVL\b", 835e12),
    (r"\bH100 PCIe\b", 756e12),
    (r"\bH(100|200)\b", 989e12),
    (r"\bA100\b", 312e12),
    (r"\bA30\b", 165e12),
    (r"\bA40\b", 149.7e12),
    (r"\bL40S\b", 362e12),
    (r"\bL4\b", 121e12),
    (r"\bMI300X\b", 1307e12),
    (r"\bRTX 4090\b", 165e12),
    (r"\bRTX 3090\b", 71e12),
)
"""Names of GPUs, and their dense bfloat16 FLOP/s from the data sheets; the first match counts."""
_SIDE = 768
"""Rows and columns of the matrices that are multiplied to measure a CPU."""
_TRIES = 5


def training_flops(config: NetworkShape, length: int, *, two_stream: bool) -> float:
    """FLOPs of one sequence, forwards and backwards.

    Args:
        config: The configuration of the network.
        length: Tokens of the sequence.
        two_stream: Whether the pass holds a clean copy as well.
    """
    hidden, heads = config.hidden_size, config.num_heads * config.head_dim
    matrices = hidden * (2 * heads + 2 * config.num_kv_heads * config.head_dim)
    if isinstance(config, DDiTConfig):
        matrices += 2 * config.mlp_ratio * hidden**2
        matrices += 6 * config.cond_dim * hidden if config.condition_blocks else 0
    elif isinstance(config, DecoderConfig):
        matrices += (3 if config.gated else 2) * hidden * config.intermediate_size
    block = 2 * matrices + 4 * length * heads
    positions = length * (2 if two_stream else 1)
    return 3.0 * (positions * config.num_blocks * block + length * 2 * hidden * config.vocab_size)


def peak_flops(device: torch.device, *, bf16: bool = True) -> float | None:
    """FLOP/s that a device can do: of a GPU by its name, in bfloat16; of a CPU by a measured matrix product.

    Args:
        device: Device of the result.
        bf16: Whether a CPU is measured in bfloat16, or in float32.

    Returns:
        FLOP/s, or None for an unknown device.
    """
    if device.type == "cpu":
        return _measured(torch.bfloat16 if bf16 else torch.float32)
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for pattern, peak in _PEAKS if re.search(pattern, name)), None)


def _measured(dtype: torch.dtype) -> float:
    """The best of a few matrix products."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=dtype)
    seconds = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - began)
    return 2 * _SIDE**3 / min(seconds)
