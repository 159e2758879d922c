"""Training times: every sequence (and every block) has its own time, spread evenly over the whole batch.

One time for a whole batch makes the loss noisy; independent times leave gaps. Here time `j` of `B` is `(offset + j / B)
mod 1`: each is uniform on [0, 1), and together they cover it (arXiv 2107.00630, appendix I.1).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hdlm.randomness import Randomness

__all__ = ["stratified_times"]


def stratified_times(
    randomness: Randomness,
    step: int,
    num_sequences: int,
    num_times: int = 1,
    *,
    start: int = 0,
    stop: int | None = None,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "b e"]:
    """Stratified times in [0, 1) for the sequences `start .. stop-1` of a *global* batch.

    The grid covers all `num_sequences * num_times` times of the optimizer step, in a random order. So processes and
    accumulation steps that compute only their own part get parts of one stratified set.

    Args:
        randomness: The run's random numbers.
        step: Index of the optimizer step.
        num_sequences: Sequences in the global batch.
        num_times: Times per sequence, one for each epoch of a packed hyperschedule.
        start: Index of the first sequence.
        stop: Index after the last sequence; all sequences by default.
        device: Device of the result.
    """
    count = num_sequences * num_times
    cell = torch.arange(count, device=device)
    zero = torch.zeros_like(cell)
    order = randomness.uniform(zero, step, cell, stream=_ORDER).argsort()
    offset = randomness.uniform(zero[:1], step, zero[:1], stream=_OFFSET)
    times = torch.remainder(offset + order.double() / count, 1.0)
    return times.view(num_sequences, num_times)[start:stop]


_ORDER, _OFFSET = 0x71, 0x72
"""Random streams of this module; sampling uses small numbers."""
