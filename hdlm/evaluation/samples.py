"""Samples for an evaluation: written batch by batch, kept on the disk as they come, gone on with after a kill.

Sample `k` is a function of the seed and `k`, so neither the batch size nor an interruption changes it. The file is one
JSON object a line: first what the samples were made with, then the samples in order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch

from hdlm.atomic import replacing
from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.protocol import weights_sha256
from hdlm.evaluation.telemetry import revisions
from hdlm.generation import BLANK, Settings, write
from hdlm.sampling import Frame, Trace

__all__ = ["DRAW_DTYPE", "Sample", "draw_samples", "num_evaluations", "tokens_per_second"]

DRAW_DTYPE = "float64"
"""What `hdlm.sampling.draws` draws in, always."""


@final
@dataclass(frozen=True)
class Sample:
    """One text that was written, and at what price.

    Attributes:
        text: The words, the prompt included.
        tokens: Their ids, the special ones included.
        given: How many of the first were given.
        num_evaluations: Calls of the network for the batch that it was in.
        seconds: Time for that batch, over its samples.
        revisions: Words taken back by kind and step; see `hdlm.evaluation.telemetry`.
    """

    text: str
    tokens: list[int]
    given: int
    num_evaluations: int
    seconds: float
    revisions: dict[str, dict[int, int]]

    @property
    def written(self) -> list[int]:
        """The tokens that were not given."""
        return self.tokens[self.given :]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sample:
        """What `asdict` gave, once it has been JSON."""
        steps = {kind: {int(k): v for k, v in one.items()} for kind, one in values["revisions"].items()}
        return cls(**{**values, "revisions": steps})


def draw_samples(
    checkpoint: Checkpoint,
    settings: Settings,
    *,
    prompt: str = "",
    num: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    keep: Path | None = None,
    watch: Callable[[int, Frame], None] | None = None,
) -> list[Sample]:
    """Write samples, or go on where another run stopped.

    Args:
        checkpoint: The model; on `device`.
        settings: How to write.
        prompt: Text that all begin with.
        num: How many samples, at least 1.
        batch_size: How many at a time; by default as many as fit, halved when memory runs out.
        seed: Of all randomness.
        device: Where the model is.
        keep: The file they are kept in, and read from if it is there.
        watch: Told how many samples are done, and every step of those at work.

    Raises:
        ValueError: If the prompt has gaps, a setting is out of range, or the file has samples that were made otherwise.
    """
    if BLANK.search(prompt):
        raise ValueError("samples to be scored continue a prompt: it must have no [MASK].")
    made_with = {
        "settings": asdict(settings),
        "prompt": prompt,
        "seed": seed,
        "weights_sha256": weights_sha256(checkpoint.network),
    }
    found = _kept(keep, made_with) if keep is not None else []
    size = batch_size or (16 if torch.device(device).type == "cpu" else 64)
    while len(found) < num:
        try:
            found = found + _batch(
                checkpoint, prompt, settings, len(found), min(size, num - len(found)), seed, device, watch
            )
        except torch.OutOfMemoryError:
            if batch_size is not None or size == 1:
                raise
            size //= 2
            continue
        if keep is not None:
            with replacing(keep) as aside:
                lines = [made_with, *(asdict(sample) for sample in found)]
                text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
                aside.write_text(text + "\n", encoding="utf-8")
    return found[:num]


def num_evaluations(samples: list[Sample]) -> float:
    """Calls of the network for a batch; the mean over samples, should batches differ."""
    return sum(sample.num_evaluations for sample in samples) / len(samples)


def tokens_per_second(samples: list[Sample]) -> float:
    """Tokens written, over the time that it took."""
    return sum(len(sample.written) for sample in samples) / sum(sample.seconds for sample in samples)


def _batch(
    checkpoint: Checkpoint,
    prompt: str,
    settings: Settings,
    first: int,
    size: int,
    seed: int,
    device: torch.device | str,
    watch: Callable[[int, Frame], None] | None,
) -> list[Sample]:
    trace = Trace(checkpoint.vocabulary.mask_id)

    def seen(frame: Frame) -> None:
        trace(frame)
        if watch is not None:
            watch(first, frame)

    begin = time.perf_counter()
    passages = write(
        checkpoint, prompt, settings, num=size, seed=seed, first_sequence=first, device=device, watch=seen
    )
    seconds = (time.perf_counter() - begin) / size
    taken_back = [change for change in trace.changes if change.reason != "unmasked"]
    return [
        Sample(
            one.text,
            list(one.tokens),
            one.given,
            one.num_evaluations,
            seconds,
            revisions(taken_back, first + index),
        )
        for index, one in enumerate(passages)
    ]


def _kept(path: Path, made_with: Mapping[str, Any]) -> list[Sample]:
    """Samples of an earlier run.

    Raises:
        ValueError: If it made them otherwise, or the file is something else.
    """
    if not path.exists():
        return []
    try:
        first, *rest = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = [Sample.from_dict(one) for one in rest]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no file of samples ({error}): remove it, or choose another folder."
        ) from error
    if first != made_with:
        apart = [
            name for name in made_with if not isinstance(first, dict) or first.get(name) != made_with[name]
        ]
        raise ValueError(
            f"{path} has samples that were made otherwise ({', '.join(apart)} differ): remove it, or choose another "
            "folder."
        )
    return found
