"""Random orders with random access: the window at a place is a function of (seed, epoch, place).

Up to `SORTED` windows are ordered by sorting one random number each. More windows are ordered by a Feistel network of
four rounds on their numbers (Luby and Rackoff, *How to construct pseudorandom permutations from pseudorandom
functions*, 1988): a permutation of `[0, 2^bits)` that is applied until the result is below `size` (Black and Rogaway,
*Ciphers with arbitrary finite domains*, 2002). Its memory and time depend only on the number of places that are read.
    l <- l xor f(r),  r <- r xor f(l),  ..        f: Philox with key `seed` at counter (half, epoch, round, stream)
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.randomness import Randomness, philox

__all__ = ["SORTED", "permutation", "shuffled"]

SORTED = 2**20
"""The largest size that is sorted."""
_ROUNDS = 4
_LOW = 0xFFFFFFFF


def shuffled(seed: int, epoch: int, size: int, places: Int[Tensor, " n"], stream: int) -> Int[Tensor, " n"]:
    """The items at some places of a random order of `0 .. size - 1`.

    Args:
        seed: Seed of all orders.
        epoch: Number of the order, in [0, 2^32).
        size: Number of items.
        places: The places, in [0, size).
        stream: Random stream of the order's purpose.
    """
    if size <= SORTED:
        return permutation(seed, epoch, size, stream)[places]
    items = _feistel(seed, epoch, size, places, stream)
    while (outside := items >= size).any():
        items[outside] = _feistel(seed, epoch, size, items[outside], stream)
    return items


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int, stream: int) -> Int[Tensor, " size"]:
    """A whole random order, by sorting; see `shuffled`."""
    place = torch.arange(size)
    return Randomness(seed).uniform(torch.zeros_like(place), epoch, place, stream=stream).argsort(stable=True)


def _feistel(seed: int, epoch: int, size: int, places: Int[Tensor, " n"], stream: int) -> Int[Tensor, " n"]:
    """A permutation of the numbers with as many bits as `size - 1`."""
    bits = (size - 1).bit_length()
    widths = (bits // 2, bits - bits // 2)
    halves = [places & ((1 << widths[0]) - 1), places >> widths[0]]
    for number in range(_ROUNDS):
        mine, other = number % 2, 1 - number % 2
        counter = (halves[other], torch.tensor(epoch), torch.tensor(number), torch.tensor(stream))
        random = philox(counter, (seed & _LOW, seed >> 32))[0]
        halves[mine] = halves[mine] ^ (random & ((1 << widths[mine]) - 1))
    return halves[0] | (halves[1] << widths[0])
