"""Many samples: written batch by batch, kept on the disk as they come, gone on with after a kill, by many processes.

Sample `k` is a function of the seed and `k`: neither the batch size, nor the number of processes, nor an interruption
changes it. The file is one JSON object a line: first what the samples were made with, then the samples, each with its
`index`. A line is added for each as it comes, and a last line that was cut short by a kill is dropped. Of several
processes each has a part of its own beside the file; the parts are put together, in order, when all are done.
"""

from __future__ import annotations

import glob
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch

from hdlm.atomic import keeping, replacing
from hdlm.checkpoint import Checkpoint
from hdlm.denoiser import resolve_device
from hdlm.distributed import ALONE, Processes
from hdlm.evaluation.generation.corrections import revisions
from hdlm.evaluation.records import protocol
from hdlm.generation import BLANK, Ending, Settings, write
from hdlm.sampling import ApproximateCache, Frame, Trace

__all__ = ["DRAW_DTYPE", "Sample", "draw_samples", "drawn_with", "num_evaluations", "tokens_per_second"]

DRAW_DTYPE = "float64"
"""What `hdlm.sampling.draws` draws in, always."""
_NO_END = Ending()


@final
@dataclass(frozen=True)
class Sample:
    """One text that was written, and at what price.

    Attributes:
        text: The words, the prompt included.
        tokens: Their ids, the special ones included.
        given: How many of the first were given.
        num_evaluations: Calls of the network for the batch that it was in, or their mean over batches.
        seconds: Time for that batch, over its samples.
        revisions: Words taken back by kind and step; see `hdlm.evaluation.generation.corrections`.
    """

    text: str
    tokens: list[int]
    given: int
    num_evaluations: int | float
    seconds: float
    revisions: dict[str, dict[int, int]]

    @property
    def written(self) -> list[int]:
        """The tokens that were not given."""
        return self.tokens[self.given :]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sample:
        """What `asdict` gave, once it has been JSON, with or without an index."""
        steps = {kind: {int(k): v for k, v in one.items()} for kind, one in values["revisions"].items()}
        rest = {name: value for name, value in values.items() if name != "index"}
        return cls(**{**rest, "revisions": steps})


def draw_samples(
    checkpoint: Checkpoint,
    settings: Settings,
    *,
    prompt: str = "",
    num: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    ending: Ending = _NO_END,
    approximate: ApproximateCache | None = None,
    device: torch.device | str | None = None,
    keep: Path | None = None,
    processes: Processes = ALONE,
    watch: Callable[[int, float], None] | None = None,
) -> list[Sample]:
    """Write samples, or go on where another run stopped.

    Args:
        checkpoint: The model.
        settings: How to write.
        prompt: Text that all begin with.
        num: How many samples, at least 1.
        batch_size: How many at a time; by default as many as fit, halved when memory runs out.
        seed: Of all randomness.
        ending: Where samples may end before the canvas is full.
        approximate: A cache that changes logits.
        device: That of the model by default, and no other.
        keep: The file they are kept in, and read from if it is there.
        processes: Who else writes at the same time, each its share; they need a file.
        watch: Told after every step how many samples are not left to this process, and which share of the work is done.

    Raises:
        ValueError: If the prompt has gaps, a setting is out of range, several processes have no file, the file has
            samples that were made otherwise, or samples would depend on those written beside them (guidance with an
            approximate cache).
    """
    if approximate is not None and settings.guidance:
        raise ValueError(
            "With guidance a batch goes in step, and an approximate cache would make samples depend on one another: "
            "leave one of them out."
        )
    if BLANK.search(prompt):
        raise ValueError("samples to be scored continue a prompt: it must have no [MASK].")
    if keep is None and processes.count > 1:
        raise ValueError("several processes need a file to put their samples together: give `keep`.")
    made_with = drawn_with(checkpoint, settings, prompt, seed, ending, approximate)
    kept = None if keep is None else _Kept(keep, made_with, processes.rank)
    found = {} if kept is None else kept.read()
    device = resolve_device(checkpoint.denoiser, device)
    unit = size = batch_size or (16 if device.type == "cpu" else 64)
    turn = processes.count, processes.rank
    left = [index for index in range(num) if index not in found and index // unit % turn[0] == turn[1]]
    how = {"ending": ending, "approximate": approximate, "device": device}
    while left:
        some = _run_of(left, size)
        tell = None if watch is None else partial(_tell, watch, num - len(left), len(some), num)
        try:
            new = _batch(checkpoint, prompt, settings, some, tell, seed=seed, **how)
        except torch.OutOfMemoryError:
            if batch_size is not None or size == 1:
                raise
            size //= 2
            continue
        if kept is not None:
            kept.add(new)
        found |= new
        left = left[len(some) :]
    if kept is not None:
        processes.wait()
        if processes.is_main:
            kept.put_together()
        processes.wait()
        found = kept.read() if processes.count > 1 else found
    return [found[index] for index in range(num)]


def drawn_with(
    checkpoint: Checkpoint,
    settings: Settings,
    prompt: str = "",
    seed: int = 0,
    ending: Ending = _NO_END,
    approximate: ApproximateCache | None = None,
) -> dict[str, Any]:
    """All that samples depend on, ready for JSON; arguments as in `draw_samples`."""
    return {
        "settings": asdict(settings),
        "prompt": prompt,
        "seed": seed,
        "ending": {"at_end_of_text": ending.at_end_of_text, "strings": list(ending.strings)},
        "approximate": None if approximate is None else asdict(approximate),
        "weights_sha256": protocol.weights_sha256(checkpoint.network),
        "process": repr(checkpoint.denoiser.process),
        "parameterization": repr(checkpoint.denoiser.parameterization),
        "hyperschedules": repr(checkpoint.hyperschedules),
        "noise_schedule": repr(checkpoint.noise_schedule),
        "visibility": [checkpoint.context, checkpoint.active],
        "length": checkpoint.length,
        "dtype": str(next(checkpoint.network.parameters()).dtype),
        "tokenizer_sha256": hashlib.sha256(str(checkpoint.tokenizer_json).encode()).hexdigest(),
        "hdlm": protocol.versions()["hdlm"],
    }


def num_evaluations(samples: Sequence[Sample]) -> float:
    """Calls of the network for a batch; the mean over samples, should batches differ."""
    return sum(sample.num_evaluations for sample in samples) / len(samples)


def tokens_per_second(samples: Sequence[Sample]) -> float:
    """Tokens written, over the time that it took."""
    return sum(len(sample.written) for sample in samples) / sum(sample.seconds for sample in samples)


def _run_of(left: Sequence[int], most: int) -> range:
    """The first of them that follow one another."""
    count = 1
    while count < min(most, len(left)) and left[count] == left[0] + count:
        count += 1
    return range(left[0], left[0] + count)


def _tell(watch: Callable[[int, float], None], begun: int, size: int, num: int, frame: Frame) -> None:
    """Say how far the work is, from how far `size` samples behind `begun` others are."""
    watch(begun, (begun + frame.share * size) / num)


def _batch(
    checkpoint: Checkpoint,
    prompt: str,
    settings: Settings,
    indices: range,
    watch: Callable[[Frame], None] | None,
    **how: Any,
) -> dict[int, Sample]:
    trace = Trace(checkpoint.vocabulary.mask_id)

    def seen(frame: Frame) -> None:
        trace(frame)
        if watch is not None:
            watch(frame)

    begin, size = time.perf_counter(), len(indices)
    passages = write(
        checkpoint,
        prompt,
        settings,
        num=size,
        first_sequence=indices.start,
        watch=seen,
        **how,
    )
    seconds = (time.perf_counter() - begin) / size
    taken_back = [change for change in trace.changes if change.reason != "unmasked"]
    return {
        index: Sample(
            one.text,
            list(one.tokens),
            one.given,
            one.num_evaluations,
            seconds,
            revisions(taken_back, index),
        )
        for index, one in zip(indices, passages, strict=True)
    }


@final
@dataclass(frozen=True)
class _Kept:
    """The file of samples, and the parts beside it.

    Attributes:
        path: The file.
        made_with: What its samples are made with.
        rank: Which process this is; 0 adds to the file itself.
    """

    path: Path
    made_with: Mapping[str, Any]
    rank: int

    def read(self) -> dict[int, Sample]:
        """Samples of this and earlier runs, by index.

        Raises:
            ValueError: If they were made otherwise, or a file is something else.
        """
        found: dict[int, Sample] = {}
        for path in [self.path, *self._parts]:
            found |= self._samples(path) if path.exists() and path.stat().st_size else {}
        return found

    def add(self, new: Mapping[int, Sample]) -> None:
        """Add samples.

        Raises:
            NotKeptError: If they cannot be written.
        """
        path = self.path if self.rank == 0 else self.path.with_name(f"{self.path.name}.part-{self.rank}")
        lines = [_line({"index": index, **asdict(sample)}) for index, sample in new.items()]
        with keeping(lambda: b"".join(lines).decode(), path):
            self._append(path, lines)

    def _append(self, path: Path, lines: Sequence[bytes]) -> None:
        """Add lines behind the last one that is whole."""
        if not path.exists() or not path.stat().st_size:
            self._write(path, {})
        with path.open("r+b") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            file.seek(whole)
            for line in lines:
                file.write(line)
                file.flush()

    def put_together(self) -> None:
        """All samples in the file itself, in order, and no parts."""
        parts = self._parts
        if parts:
            self._write(self.path, dict(sorted(self.read().items())))
        for part in parts:
            part.unlink()

    @property
    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.part-*"))

    def _write(self, path: Path, samples: Mapping[int, Sample]) -> None:
        lines = [
            self.made_with,
            *({"index": index, **asdict(sample)} for index, sample in samples.items()),
        ]
        with replacing(path) as aside:
            aside.write_bytes(b"".join(map(_line, lines)))

    def _samples(self, path: Path) -> dict[int, Sample]:
        *lines, _ = path.read_bytes().split(b"\n")
        try:
            first, *rest = [json.loads(line) for line in lines]
            found = {int(one["index"]): Sample.from_dict(one) for one in rest}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is no file of samples ({error}): remove it, or choose another place."
            ) from error
        if first != self.made_with:
            apart = [
                name
                for name, value in self.made_with.items()
                if not isinstance(first, dict) or first.get(name) != value
            ]
            raise ValueError(
                f"{path} has samples that were made otherwise ({', '.join(apart)} differ): remove it, or choose "
                "another place."
            )
        return found


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"
