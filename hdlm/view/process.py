"""A sentence at each noise level, for each noise process: what the network has to undo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from PIL import Image
from rich.console import Console
from rich.text import Text

from hdlm.atomic import replacing
from hdlm.process import GIDD, Absorbing, AbstractNoiseProcess, EpsilonHybrid, GammaHybrid, Uniform
from hdlm.randomness import Randomness
from hdlm.view.palette import CORRECTED, MUTED
from hdlm.view.replay import MASK
from hdlm.view.tokens import PAPER, Piece, TokenPainter, warn_of_missing

__all__ = ["PROCESSES", "NoisySentence", "draw_processes", "noisy_sentences", "print_processes"]

PROCESSES: Mapping[str, Callable[[int], AbstractNoiseProcess]] = {
    "absorbing": Absorbing,
    "uniform": Uniform,
    "epsilon-hybrid": lambda num_words: EpsilonHybrid(num_words, 0.1),
    "gamma-hybrid": lambda num_words: GammaHybrid(num_words, 0.3),
    "gidd": lambda num_words: GIDD(num_words, 0.2),
}
"""The processes by name, with usual strengths."""
_STREAM = 2**32 - 3
"""The random stream of the noise."""


@final
@dataclass(frozen=True)
class NoisySentence:
    """A sentence under one process.

    Attributes:
        name: Name of the process.
        process: The process itself.
        clean: Tokens without noise.
        fractions: Noise fractions, from 0 to 1.
        tokens: The tokens at each fraction.
    """

    name: str
    process: AbstractNoiseProcess
    clean: list[int]
    fractions: list[float]
    tokens: list[list[int]]

    def to_dict(self) -> dict[str, Any]:
        """The sentence as plain values."""
        rows = zip(self.fractions, self.tokens, strict=True)
        return {
            "process": repr(self.process),
            "levels": [{"noise": fraction, "tokens": tokens} for fraction, tokens in rows],
        }


def noisy_sentences(
    tokens: Sequence[int], num_words: int, names: Sequence[str], *, num_levels: int = 8, seed: int = 0
) -> list[NoisySentence]:
    """Draw the tokens at each noise level, for each process.

    One random number for each position decides at all levels and for all processes, so a token that is lost remains
    lost as noise grows, and processes can be compared.

    Args:
        tokens: Tokens of the sentence.
        num_words: Number of words.
        names: Keys of `PROCESSES`.
        num_levels: Number of noise levels above 0.
        seed: Seed of the noise.

    Raises:
        ValueError: If there are no levels.
    """
    if num_levels < 1:
        raise ValueError(f"a sentence needs at least one noise level; got {num_levels}.")
    clean = torch.tensor(list(tokens))
    draw = Randomness(seed).uniform(torch.zeros_like(clean), 0, torch.arange(len(clean)), _STREAM)
    fractions = [level / num_levels for level in range(num_levels + 1)]
    sentences = []
    for name in names:
        process = PROCESSES[name](num_words)
        noisy = [
            process.corrupt(clean, torch.full_like(draw, u), draw).tolist() if u else clean.tolist()
            for u in fractions
        ]
        sentences.append(NoisySentence(name, process, clean.tolist(), fractions, noisy))
    return sentences


def print_processes(sentences: Sequence[NoisySentence], read: Callable[[int], str], console: Console) -> None:
    """Print the sentences; a wrong word is coloured and underlined.

    Args:
        sentences: The sentences to print.
        read: Returns the text of a token.
        console: The console to print on.
    """
    for sentence in sentences:
        console.print(Text(f"{sentence.name}: {sentence.process!r}", "bold"), soft_wrap=True)
        for fraction, tokens in zip(sentence.fractions, sentence.tokens, strict=True):
            line = Text(f"  {fraction:4.2f} ", MUTED)
            for token, clean in zip(tokens, sentence.clean, strict=True):
                if token == sentence.process.mask_id:
                    word = read(clean)
                    line.append(" " * word.startswith(" ") + MASK * max(len(word.strip()), 1), MUTED)
                else:
                    line.append(read(token), "" if token == clean else f"bold underline {CORRECTED}")
            console.print(line, soft_wrap=not console.is_terminal)
        console.print()


def draw_processes(
    sentences: Sequence[NoisySentence], read: Callable[[int], str], output: Path, *, width: int = 1400
) -> None:
    """Write the sentences as a picture. It warns of characters that no installed font has.

    Args:
        sentences: The sentences to draw.
        read: Returns the text of a token.
        output: The PNG file.
        width: Width of the picture in pixels.

    Raises:
        ValueError: If the suffix is another one.
    """
    if output.suffix.lower() != ".png":
        raise ValueError(f"the picture of a process ends in .png; got {str(output)!r}.")
    margin, painter, label = 32, TokenPainter(26), 110
    room = width - 2 * margin - label
    blocks: list[tuple[list[Piece], int, int]] = []
    top = margin
    for sentence in sentences:
        blocks.append(
            ([(f"{sentence.name}  ", "settled", ""), (repr(sentence.process), "given", "")], margin, top)
        )
        top += painter.line
        for fraction, tokens in zip(sentence.fractions, sentence.tokens, strict=True):
            pieces = [
                _piece(token, clean, sentence, read)
                for token, clean in zip(tokens, sentence.clean, strict=True)
            ]
            blocks += [([(f"{fraction:.2f}", "given", "")], margin, top), (pieces, margin + label, top)]
            top += painter.height(pieces, room)
        top += margin
    image = Image.new("RGB", (width, top), PAPER)
    for pieces, left, above in blocks:
        painter.draw(image, pieces, left, above, width if left == margin else room)
    with replacing(output) as path:
        image.save(path, optimize=True)
    warn_of_missing([painter])


def _piece(token: int, clean: int, sentence: NoisySentence, read: Callable[[int], str]) -> Piece:
    if token == sentence.process.mask_id:
        return None, "mask", read(clean)
    return read(token), "settled" if token == clean else "corrected", ""
