"""Counter-based randomness: the published function, and independence of order and batch."""

from __future__ import annotations

import pytest
import torch

from hdlm.randomness import Randomness, philox
from hdlm.verification import FAILURE_RATE, chi_square

# Known answers of Random123 (kat_vectors, philox4x32 with 10 rounds): counter, key, output.
ALL_ONES = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL_ONES,) * 4, (ALL_ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_philox_known_answers(counter, key, output):
    words = philox(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(map(int, words)) == output


def numbers(seed=0, sequences=range(6), step=3, positions=range(40), stream=0):
    rows, columns = torch.tensor(list(sequences))[:, None], torch.tensor(list(positions))[None]
    return Randomness(seed).uniform(rows, step, columns, stream)


def test_random_number_depends_on_its_address_only():
    whole = numbers()
    assert torch.equal(numbers(sequences=[4, 2]), whole[[4, 2]])
    assert torch.equal(numbers(positions=[7, 39, 0]), whole[:, [7, 39, 0]])
    steps = torch.tensor([1, 3, 5])[:, None, None]
    many = Randomness(0).uniform(torch.arange(6)[:, None], steps, torch.arange(40)[None])
    assert torch.equal(many[1], whole)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"seed": 2**32},
        {"step": 4},
        {"stream": 1},
        {"sequences": range(6, 12)},
        {"positions": range(40, 80)},
    ],
)
def test_random_numbers_change_with_every_part_of_the_address(other):
    assert not (numbers() == numbers(**other)).any()


def test_random_numbers_are_uniform_with_53_bits():
    draws = numbers(sequences=range(200), positions=range(1000)).flatten()
    assert draws.dtype == torch.float64
    assert 0 <= float(draws.min()) <= float(draws.max()) < 1
    cells = 1000
    counts = (draws * cells).long().bincount(minlength=cells)
    assert chi_square(counts, torch.full((cells,), 1 / cells)) > FAILURE_RATE
    lowest_bits = (draws * 2.0**53).long() & 0xFF
    assert chi_square(lowest_bits.bincount(minlength=256), torch.full((256,), 1 / 256)) > FAILURE_RATE


@pytest.mark.parametrize("axis", ["sequences", "positions", "steps", "streams", "seeds"])
def test_random_numbers_of_neighbouring_addresses_are_independent(axis):
    """Pairs of neighbouring addresses fill the square evenly."""
    base = {"sequences": range(100), "positions": range(400)}
    neighbour = {
        "sequences": {"sequences": range(1, 101)},
        "positions": {"positions": range(1, 401)},
        "steps": {"step": 4},
        "streams": {"stream": 1},
        "seeds": {"seed": 1},
    }[axis]
    one, other = numbers(**base).flatten(), numbers(**{**base, **neighbour}).flatten()
    cell = (one * 16).long() * 16 + (other * 16).long()
    assert chi_square(cell.bincount(minlength=256), torch.full((256,), 1 / 256)) > FAILURE_RATE


def test_randomness_of_rows_uses_one_seed_per_row():
    rows, columns, seeds = torch.arange(4)[:, None], torch.arange(30)[None], [3, 2**64 - 1, 3, 2**33 + 5]
    mixed = Randomness.of_rows(seeds).uniform(rows, 2, columns, 1)
    for row, seed in enumerate(seeds):
        assert torch.equal(mixed[row : row + 1], numbers(seed, [row], 2, range(30), 1))
    assert Randomness.of_rows([4, 4]) == Randomness(4)
    with pytest.raises(ValueError, match="-1"):
        Randomness((0, -1))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_randomness_rejects_bad_seed(seed):
    with pytest.raises(ValueError, match=str(seed)):
        Randomness(seed)
